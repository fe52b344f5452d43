//! What the user is told on stderr, so that pipes carry records only.

use std::io::{self, Write};

use crate::output::escape;

/// Writes notes, warnings and errors to stderr. A stderr that is gone is no reason to stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notes {
    quiet: bool,
    color: bool,
}

/// One thing to tell. The text may hold strings from pods and nodes: it is escaped when printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    Info(String),
    Warning(String),
}

impl Note {
    /// The same, of one node of many.
    pub(crate) fn of(self, node: &str) -> Self {
        match self {
            Note::Info(text) => Note::Info(format!("node {node}: {text}")),
            Note::Warning(text) => Note::Warning(format!("node {node}: {text}")),
        }
    }
}

impl Notes {
    /// `quiet` leaves errors only; `color` allows ANSI colours.
    pub(crate) fn new(quiet: bool, color: bool) -> Self {
        Notes { quiet, color }
    }

    pub(crate) fn tell(&self, note: &Note) {
        match note {
            Note::Info(text) => self.info(text),
            Note::Warning(text) => self.warning(text),
        }
    }

    pub(crate) fn info(&self, text: &str) {
        if !self.quiet {
            line("", text);
        }
    }

    pub(crate) fn warning(&self, text: &str) {
        if !self.quiet {
            line(&self.label("33", "warning"), text);
        }
    }

    pub(crate) fn error(&self, text: &str) {
        line(&self.label("1;31", "error"), text);
    }

    fn label(&self, color: &str, label: &str) -> String {
        if self.color { format!("\x1b[{color}m{label}:\x1b[0m ") } else { format!("{label}: ") }
    }
}

/// Lines of one message stay lines, everything else that could steer a terminal is escaped.
fn line(label: &str, text: &str) {
    let mut message = String::from(label);
    for (number, part) in text.trim_end().split('\n').enumerate() {
        if number > 0 {
            message.push_str("\n  ");
        }
        message.push_str(&escape::for_terminal(part));
    }
    message.push('\n');
    let _ = io::stderr().lock().write_all(message.as_bytes());
}
