//! `cargo xtask demo`: real traffic of real network namespaces, watched by the real command line,
//! and orb8's totals beside the kernel's.

mod cast;
mod compare;
mod exact;
mod interrupt;
mod orb8;

use std::{io::IsTerminal, thread, time::Duration};

use anyhow::{Result, ensure};

use crate::step;
use cast::{Cast, POD_LIST};
use interrupt::Interrupt;
use orb8::Orb8;

/// Records of the live trace that are shown; a busy node has more than a screen.
const TRACE_LINES: usize = 24;

/// How long the background traffic flows before orb8 is called, so that the first answer has all of it.
const WARM_UP: Duration = Duration::from_millis(500);

/// Builds, plays the three acts, and leaves nothing behind, on Ctrl-C neither.
pub(crate) fn run() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the demo makes network namespaces and loads BPF programs: run it as root (sudo make demo)"
    );
    let bin_dir = step::build_bins(&["--release", "--package", "orb8-cli"], "orb8")?;
    // In the profile of this program, so that it comes to lie beside it, where the testkit looks.
    step::build_bins(&["--package", "orb8-testkit"], "orb8-testpod")?;

    let interrupt = Interrupt::listen()?;
    let played = play(&Orb8::new(bin_dir.join("orb8"), &interrupt), &interrupt);
    // An interrupted act fails in some way of its own, which is nobody's fault.
    ensure!(!interrupt.asked(), "interrupted; nothing is left behind");
    played
}

fn play(orb8: &Orb8<'_>, interrupt: &Interrupt) -> Result<()> {
    heading("A node with six pods");
    let cast = Cast::start()?;
    cast.introduce();

    let background = cast.chatter()?;
    thread::sleep(WARM_UP);
    interrupt.check()?;

    heading("Who talks how much");
    orb8.show(&cast, &["query", "pods", "--duration", "5s", "--pods", POD_LIST], usize::MAX)?;

    heading("Every flow, live");
    orb8.show(&cast, &["trace", "network", "--duration", "4s", "--pods", POD_LIST], TRACE_LINES)?;
    drop(background);

    heading("orb8's totals beside the kernel's interface counters");
    exact::run(orb8, &cast, interrupt)
}

fn heading(text: &str) {
    let line = "─".repeat(92_usize.saturating_sub(text.chars().count()));
    println!("\n{}\n", styled("1", &format!("── {text} {line}")));
}

/// The text in an ANSI style, on a terminal.
fn styled(style: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() {
        format!("\x1b[{style}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}
