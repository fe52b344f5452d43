//! The act that proves it: a burst of traffic, orb8's records summed up, the kernel's counters
//! before and after.

use std::{
    fs::File,
    io::BufReader,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use orb8_testkit::LinkCounters;

use super::{
    cast::{BULK_BYTES, Cast, POD_LIST, full_name},
    compare::{Totals, Verdict, print},
    interrupt::Interrupt,
    orb8::Orb8,
};

/// Nothing moved on any interface for this long: the traffic before is over.
const QUIET: Duration = Duration::from_secs(1);

/// How long to wait for that. Sockets that close and neighbours that are looked for take seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// A packet that nobody sent on purpose (neighbour discovery, mostly) may pass just while orb8
/// attaches or detaches, and be counted by one side only. Then the measurement is repeated.
const ATTEMPTS: u32 = 5;

/// Measures and prints; an error when a difference is left.
pub(super) fn run(orb8: &Orb8<'_>, cast: &Cast, interrupt: &Interrupt) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let Some((seen, counted)) = measure(orb8, cast, interrupt)? else {
            println!("  a stray packet passed while orb8 attached or detached: once more\n");
            continue;
        };
        let names = cast.pods().map(|pod| (pod.veth().to_owned(), full_name(pod)));
        match print(&names, &seen, &counted) {
            Verdict::Equal => return Ok(()),
            Verdict::Different => bail!("orb8 and the kernel disagree"),
        }
    }
    bail!("packets passed while orb8 attached or detached, {ATTEMPTS} times: nothing was compared")
}

/// What orb8 saw and what the kernel counted, of the same packets; nothing when that is not sure.
fn measure(
    orb8: &Orb8<'_>,
    cast: &Cast,
    interrupt: &Interrupt,
) -> Result<Option<(Totals, Totals)>> {
    let records = tempfile::tempfile()?;
    let args = ["trace", "network", "-o", "jsonl", "--duration", "60s", "--pods", POD_LIST];

    let before = settle(cast, interrupt)?;
    let running = orb8.start(cast, &args, records.try_clone()?)?;
    if before != counters(cast)? {
        running.stop()?;
        return Ok(None);
    }

    println!("  … 400 HTTP requests, 200 DNS queries, {} MiB of bulk TCP …", BULK_BYTES >> 20);
    cast.burst()?;
    let after = settle(cast, interrupt)?;
    running.stop()?;
    if after != counters(cast)? {
        return Ok(None);
    }

    let seen = Totals::of_records(BufReader::new(rewound(records)?))?;
    let pods = cast.pods();
    let changes = pods.iter().map(|pod| pod.veth()).zip(before.iter().zip(&after));
    Ok(Some((seen, Totals::of_counters(changes))))
}

/// Waits until nothing moves; the counters then.
fn settle(cast: &Cast, interrupt: &Interrupt) -> Result<Vec<LinkCounters>> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = counters(cast)?;
    while Instant::now() < deadline {
        thread::sleep(QUIET);
        interrupt.check()?;
        let now = counters(cast)?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
    bail!("packets keep passing: no pause of {QUIET:?} within {PATIENCE:?}")
}

fn counters(cast: &Cast) -> Result<Vec<LinkCounters>> {
    cast.pods().iter().map(|pod| pod.link_counters()).collect()
}

fn rewound(mut file: File) -> Result<File> {
    std::io::Seek::rewind(&mut file).context("the records cannot be read back")?;
    Ok(file)
}
