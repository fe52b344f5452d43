//! The result, for people and for programs.

use serde_json::json;

use super::{
    super::{probe::Size, report::machine},
    Args, Sample, Subject,
    callers::How,
    peer::Peer,
};

/// Nanoseconds over an empty program that we aim at.
const AIM: f64 = 15.0;
/// Of what `bpftrace` takes over a bare call, the part that we aim at.
const PART: f64 = 0.5;
/// Instructions that the verifier may walk through in one program.
const MAX_VERIFIED: u32 = 100_000;

/// Medians, and what they were measured with.
pub(super) struct Result {
    rows: Vec<Row>,
    peer: Option<String>,
    sizes: Vec<Size>,
}

struct Row {
    subject: Subject,
    how: How,
    /// Nanoseconds of CPU time.
    median: f64,
    min: f64,
    over_bare: f64,
    over_empty: f64,
    /// Of what the peer takes over a bare call.
    part_of_peer: Option<f64>,
}

impl Result {
    pub(super) fn of(samples: &[Sample], peer: Option<&Peer>, sizes: Vec<Size>) -> Self {
        let median_of = |subject, how| {
            let sample = samples.iter().find(|s| s.subject == subject && s.how == how);
            sample.map_or(f64::NAN, |sample| median(&sample.ns))
        };
        let rows = samples.iter().map(|sample| {
            let Sample { subject, how, ref ns } = *sample;
            let bare = median_of(Subject::Bare, how);
            let median = median(ns);
            let over_bare = median - bare;
            let peers = median_of(Subject::Peer, how) - bare;
            Row {
                subject,
                how,
                median,
                min: ns.iter().copied().fold(f64::INFINITY, f64::min),
                over_bare,
                over_empty: median - median_of(subject.floor(), how),
                part_of_peer: (peers > 0.0).then(|| over_bare / peers),
            }
        });
        let mut rows: Vec<Row> = rows.collect();
        let place = |row: &Row| {
            (row.how != How::Alone, super::OURS.iter().position(|s| *s == row.subject).unwrap_or(9))
        };
        rows.sort_by_key(place);
        Self { rows, peer: peer.map(|peer| peer.version.clone()), sizes }
    }

    pub(super) fn table(&self, args: &Args) {
        println!("Nanoseconds of CPU time per getppid");
        println!(
            "{}; {} turns of {} calls each, medians\n",
            machine(),
            args.rounds * args.turns,
            args.calls
        );
        println!(
            "{:52} {:>8} {:>8} {:>10} {:>11} {:>6} {:>12}",
            "attached", "median", "min", "over bare", "over empty", "aim", "of bpftrace"
        );
        for row in &self.rows {
            let aim = if row.aim().is_some() { format!("≤ {AIM}") } else { String::new() };
            let part = row.part_of_peer.map_or_else(String::new, |part| format!("{part:.2}"));
            println!(
                "{:52} {:8.1} {:8.1} {:10.1} {:11.1} {aim:>6} {part:>12}{}",
                self.name(row),
                row.median,
                row.min,
                row.over_bare,
                row.over_empty,
                if row.missed() { "  missed" } else { "" }
            );
        }
        if self.peer.is_none() {
            println!("\nThere was no bpftrace to compare with (Debian: apt install bpftrace).");
        }
        println!(
            "\n{:44} {:>22} {:>12} {:>14}",
            "program", "verified instructions", "eBPF bytes", "machine bytes"
        );
        for size in &self.sizes {
            let with = if size.with.is_empty() { "" } else { ", " };
            println!(
                "{:44} {:22} {:12} {:14}",
                format!("{}{with}{}", size.program, size.with),
                size.verified,
                size.translated,
                size.jited
            );
        }
    }

    pub(super) fn json(&self, args: &Args) -> anyhow::Result<()> {
        let rows = self.rows.iter().map(|row| {
            json!({
                "attached": self.name(row),
                "median_ns": row.median,
                "min_ns": row.min,
                "over_bare_ns": row.over_bare,
                "over_empty_ns": row.over_empty,
                "aim_ns": row.aim(),
                "part_of_bpftrace": row.part_of_peer,
            })
        });
        let programs = self.sizes.iter().map(|size| {
            json!({
                "program": size.program,
                "with": size.with,
                "verified_instructions": size.verified,
                "translated_bytes": size.translated,
                "jited_bytes": size.jited,
            })
        });
        let all = json!({
            "machine": machine(),
            "bpftrace": self.peer,
            "turns": args.rounds * args.turns,
            "calls_per_turn": args.calls,
            "cases": rows.collect::<Vec<_>>(),
            "programs": programs.collect::<Vec<_>>(),
        });
        println!("{}", serde_json::to_string_pretty(&all)?);
        Ok(())
    }

    /// Names everything that is over its limit: ratios, which hold on a slow machine as on a fast
    /// one, and instruction counts.
    pub(super) fn over(&self) -> Vec<String> {
        let sizes = self.sizes.iter().filter(|size| size.verified > MAX_VERIFIED);
        let mut over: Vec<_> = sizes
            .map(|size| format!("{}: {} instructions verified", size.program, size.verified))
            .collect();
        for row in self.rows.iter().filter(|row| row.aim().is_some()) {
            if let Some(part) = row.part_of_peer.filter(|part| *part > PART) {
                over.push(format!("{}: {part:.2} of bpftrace, {PART} allowed", self.name(row)));
            }
        }
        over
    }

    fn name(&self, row: &Row) -> String {
        let subject = match row.subject {
            Subject::Bare => "nothing",
            Subject::Empty => "an empty program",
            Subject::EmptyClassic => "an empty program, classic",
            Subject::Count => "orb8",
            Subject::Classic => "orb8, classic (from Linux 7.0 on)",
            Subject::Sampled => "orb8, a sampled call",
            Subject::Ends => "orb8 --latency",
            Subject::Peer => self.peer.as_deref().unwrap_or("bpftrace"),
        };
        match row.how {
            How::Alone => subject.to_owned(),
            How::InTurn => format!("{subject}; 2 cgroups in turn"),
        }
    }
}

impl Row {
    fn aim(&self) -> Option<f64> {
        (self.subject == Subject::Count).then_some(AIM)
    }

    fn missed(&self) -> bool {
        self.aim().is_some_and(|aim| self.over_empty > aim)
            || self.aim().is_some() && self.part_of_peer.is_some_and(|part| part > PART)
    }
}

fn median(ns: &[f64]) -> f64 {
    let mut ns = ns.to_vec();
    ns.sort_by(f64::total_cmp);
    ns[ns.len() / 2]
}
