//! The difference between a program and its floor, in many short rounds.
//!
//! A test run costs some 40 ns a packet by itself, and a machine has other things to do. So floor and
//! subject take turns, on the same packets and the CPU time of one thread, and what counts is the
//! median of the differences.

use anyhow::Result;
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use super::{
    cases::Case,
    probe::{Half, Probe},
};

/// Nanoseconds per packet.
pub(super) struct Cost {
    /// Median of the floor alone: the test run and the empty program.
    pub(super) floor: f64,
    /// Median, least and most of the differences.
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

/// Slots are per CPU, and so are caches.
pub(super) fn stay_on_one_cpu() -> Result<()> {
    let mut here = CpuSet::new();
    here.set(sched_getcpu());
    Ok(sched_setaffinity(None, &here)?)
}

/// Measures one case.
pub(super) fn cost(case: &Case, rounds: u32, packets: u32) -> Result<Cost> {
    let mut probe = Probe::load(case)?;
    // Every flow gets its entry: the order that packets come in leaves none out for as long as this.
    probe.time(Half::Subject, 0, 3 * (case.flows << case.in_a_row))?;
    let (mut floors, mut differences) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let first = round.wrapping_mul(packets);
        let mut half = |half| -> Result<f64> {
            Ok(probe.time(half, first, packets)?.as_secs_f64() * 1e9 / f64::from(packets))
        };
        let (floor, subject) = if round % 2 == 0 {
            let floor = half(Half::Floor)?;
            (floor, half(Half::Subject)?)
        } else {
            let subject = half(Half::Subject)?;
            (half(Half::Floor)?, subject)
        };
        floors.push(floor);
        differences.push(subject - floor);
    }
    probe.check()?;
    floors.sort_by(f64::total_cmp);
    differences.sort_by(f64::total_cmp);
    // Tenths: the next digit is noise.
    let [floor, median, min, max] = [
        floors[floors.len() / 2],
        differences[differences.len() / 2],
        differences[0],
        differences[differences.len() - 1],
    ]
    .map(|ns| (ns * 10.0).round() / 10.0);
    Ok(Cost { floor, median, min, max })
}
