//! Exit codes, and the ways in which a command fails.

use std::{io, process::ExitCode};

/// What the exit code of the process says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: everything that was asked for is in the output.
    Complete,
    /// 1: the command failed.
    Failed,
    /// 3: the output is there, but not whole: a node did not answer to the end, or records of
    /// this trace were lost.
    Partial,
    /// 64: the command line is wrong (`EX_USAGE` of sysexits.h).
    Usage,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Complete => 0,
            Exit::Failed => 1,
            Exit::Partial => 3,
            Exit::Usage => 64,
        })
    }
}

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The arguments contradict each other or name something that does not exist.
    Usage(String),
    /// The node did not answer in time: what is there may be incomplete.
    NoAnswer(String),
    /// The reader of standard output left, as `| head` does: the user has what they wanted.
    OutputClosed,
    /// Everything else.
    Other(anyhow::Error),
}

impl Failure {
    /// What to print, or nothing where silence is right.
    pub(crate) fn message(&self) -> Option<String> {
        match self {
            Failure::Usage(message) | Failure::NoAnswer(message) => Some(message.clone()),
            Failure::OutputClosed => None,
            Failure::Other(error) => Some(format!("{error:#}")),
        }
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Failure::Usage(_) => Exit::Usage,
            Failure::NoAnswer(_) => Exit::Partial,
            Failure::OutputClosed => Exit::Complete,
            Failure::Other(_) => Exit::Failed,
        }
    }

    /// An error of a write to standard output.
    pub(crate) fn output(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Failure::OutputClosed
        } else {
            Failure::Other(anyhow::Error::new(error).context("cannot write to standard output"))
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::Other(error)
    }
}
