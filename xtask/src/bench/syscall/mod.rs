//! What a system call costs more while it is counted: over no program at all, over an empty one on
//! the same hook, and beside bpftrace's count per cgroup. All take turns in one run.

mod callers;
mod peer;
mod programs;
mod report;

use anyhow::{Result, ensure};

use super::Output;
use callers::{Callers, How};
use peer::Peer;
use programs::{Attached, Programs};

/// What runs where calls begin, and end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Subject {
    /// Nothing.
    Bare,
    /// A program that does nothing.
    Empty,
    /// orb8's count.
    Count,
    /// An empty program of the classic kind.
    EmptyClassic,
    /// orb8's count by the classic kind.
    Classic,
    /// orb8's count of a call that is told one time in a hundred, to nobody.
    Sampled,
    /// orb8's count and, with `--latency`, a program where calls end.
    Ends,
    /// `bpftrace`'s count.
    Peer,
}

impl Subject {
    /// The empty program of the same kind.
    const fn floor(self) -> Self {
        match self {
            Self::EmptyClassic | Self::Classic => Self::EmptyClassic,
            _ => Self::Empty,
        }
    }
}

const OURS: [Subject; 7] = [
    Subject::Bare,
    Subject::Empty,
    Subject::Count,
    Subject::EmptyClassic,
    Subject::Classic,
    Subject::Sampled,
    Subject::Ends,
];

#[derive(clap::Args)]
pub(super) struct Args {
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Exit with 1 where counting costs more than its aims allow
    #[arg(long)]
    gate: bool,
    /// Rounds; in each, bpftrace is started and stopped once
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Turns that each program takes in a round
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
    /// Calls in each turn
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_000..))]
    calls: u32,
}

/// What was measured: nanoseconds per call of every turn, in the order of the turns.
struct Sample {
    subject: Subject,
    how: How,
    ns: Vec<f64>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut callers = Callers::start()?;
    let mut programs = Programs::load(&callers.cgroups())?;
    let peer = Peer::find();
    let mut samples = Vec::new();
    for round in 0..args.rounds {
        eprintln!("bench: round {} of {}", round + 1, args.rounds);
        for turn in 0..args.turns {
            for at in 0..OURS.len() {
                // Nobody always comes first.
                let subject = OURS[(at + (round + turn) as usize) % OURS.len()];
                let attached = programs.attach(subject)?;
                measure(args, &mut callers, subject, &mut samples, Some(&attached))?;
                programs.detach(attached)?;
            }
        }
        if let Some(peer) = &peer {
            let running = peer.start()?;
            for _ in 0..args.turns {
                measure(args, &mut callers, Subject::Peer, &mut samples, None)?;
            }
            running.stop()?;
        }
    }
    programs.check(callers.calls())?;
    let result = report::Result::of(&samples, peer.as_ref(), programs.sizes()?);
    match args.output {
        Output::Table => result.table(args),
        Output::Json => result.json(args)?,
    }
    if args.gate {
        let over = result.over();
        ensure!(over.is_empty(), "over the limits:\n  {}", over.join("\n  "));
    }
    Ok(())
}

fn measure(
    args: &Args,
    callers: &mut Callers,
    subject: Subject,
    samples: &mut Vec<Sample>,
    attached: Option<&Attached>,
) -> Result<()> {
    for how in [How::Alone, How::InTurn] {
        let counted = attached.is_some_and(Attached::counts);
        let ns = callers.measure(how, args.calls, counted)?;
        match samples.iter_mut().find(|s| s.subject == subject && s.how == how) {
            Some(sample) => sample.ns.push(ns),
            None => samples.push(Sample { subject, how, ns: vec![ns] }),
        }
    }
    Ok(())
}
