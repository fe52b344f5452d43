//! `orb8 completions` and `orb8 man`: both made from the definition of the command line.

use std::{fs, path::Path};

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::{
    args::Cli,
    exit::{Exit, Failure},
    output::print_bytes,
};

pub(super) fn script(shell: Shell) -> Result<Exit, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "orb8", &mut text);
    print_bytes(&text).map_err(Failure::output)?;
    Ok(Exit::Complete)
}

/// One page on stdout, or one per command in a directory.
pub(super) fn manual(directory: Option<&Path>) -> Result<Exit, Failure> {
    match directory {
        Some(directory) => {
            fs::create_dir_all(directory)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
                .with_context(|| format!("cannot write manual pages to {}", directory.display()))?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .context("cannot make the manual page")?;
            print_bytes(&page).map_err(Failure::output)?;
        }
    }
    Ok(Exit::Complete)
}
