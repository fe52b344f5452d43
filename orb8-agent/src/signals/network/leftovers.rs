//! Clearing away what a killed run left on interfaces.

use super::task::Task;
use crate::netlink::{NetlinkError, tc::program_held_by_a_process};

impl Task {
    /// Filters of a run that was killed: they count for nobody.
    pub(super) async fn remove_leftovers(&mut self) {
        let indices: Vec<u32> = self.known_links.keys().copied().collect();
        for index in indices {
            if let Err(error) = self.remove_leftovers_of(index).await {
                tracing::warn!("leftovers of an earlier run: {error}");
            }
        }
    }

    async fn remove_leftovers_of(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut removed = false;
        for filter in self.leftovers.orb8_filters(index).await? {
            let in_use = match filter.prog_id {
                Some(id) => program_held_by_a_process(id).await.unwrap_or(true),
                None => true,
            };
            if in_use {
                continue;
            }
            self.leftovers.remove(&filter).await?;
            tracing::info!(interface = index, filter = filter.name, "removed a leftover filter");
            removed = true;
        }
        if removed {
            self.leftovers.remove_clsact_if_empty(index).await?;
        }
        Ok(())
    }
}
