//! What may not get worse: instruction counts, and ratios that hold on a slow machine as on a fast one.

use anyhow::{Result, bail};

use super::{cases::Case, measure::Cost, probe::Size};

/// Instructions that the verifier may walk through in one program. The kernel gives up at a million;
/// loading takes time in proportion.
const MAX_VERIFIED: u32 = 100_000;

/// Names everything that is over its limit.
pub(super) fn check(costs: &[(Case, Cost)], sizes: &[Size]) -> Result<()> {
    let mut over = Vec::new();
    for size in sizes.iter().filter(|size| size.verified > MAX_VERIFIED) {
        let Size { program, verified, .. } = size;
        over.push(format!("{program}: {verified} instructions verified, {MAX_VERIFIED} allowed"));
    }
    for (case, cost) in costs {
        let times = (cost.floor + cost.median) / cost.floor;
        if times > case.at_most {
            let Case { name, family, at_most, .. } = case;
            over.push(format!("{name}, {family}: {times:.1} times the floor, {at_most} allowed"));
        }
    }
    if over.is_empty() {
        return Ok(());
    }
    bail!("over the limits:\n  {}", over.join("\n  "))
}
