//! Everything that goes to stdout: one `Printer` for all record types and formats.

pub(crate) mod anomalies;
pub(crate) mod columns;
pub(crate) mod document;
pub(crate) mod escape;
pub(crate) mod flows;
mod json;
pub(crate) mod node;
pub(crate) mod nodes;
mod peer;
pub(crate) mod pods;
pub(crate) mod syscalls;
pub(crate) mod table;
pub(crate) mod value;
mod yaml;

use std::{
    future::pending,
    io::{self, BufWriter, Stdout, Write},
    os::fd::AsFd,
};

use clap::ValueEnum;
use tokio::{io::Interest, net::unix::pipe::Sender};

use self::{columns::Column, table::Table, value::Value};

/// `--output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns for people, rounded
    #[default]
    Table,
    /// More columns, exact numbers
    Wide,
    /// One array
    Json,
    /// One object per line
    Jsonl,
    /// One sequence
    Yaml,
}

impl Format {
    pub(crate) fn is_table(self) -> bool {
        matches!(self, Format::Table | Format::Wide)
    }
}

/// `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl Color {
    pub(crate) fn on(self, terminal: bool) -> bool {
        match self {
            Color::Auto => {
                terminal
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                    && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
            }
            Color::Always => true,
            Color::Never => false,
        }
    }
}

/// How records are written, apart from which columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub format: Format,
    /// Whether a table has a line of headers.
    pub headers: bool,
    /// Whether the headers of a table may be set in bold.
    pub color: bool,
}

/// Writes records of one type in one format.
pub(crate) struct Printer<T: 'static, W: Write> {
    columns: Vec<&'static Column<T>>,
    format: Format,
    table: Table,
    out: BufWriter<W>,
    rows: u64,
}

impl<T> Printer<T, Stdout> {
    pub(crate) fn stdout(columns: Vec<&'static Column<T>>, look: Look) -> Self {
        Printer::new(columns, look, io::stdout())
    }
}

impl<T, W: Write> Printer<T, W> {
    pub(crate) fn new(columns: Vec<&'static Column<T>>, look: Look, out: W) -> Self {
        let table = Table::new(columns.iter().map(|column| (column.header, column.width)), look);
        Printer { columns, format: look.format, table, out: BufWriter::new(out), rows: 0 }
    }

    /// Records written so far.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Writes all records there are and ends the output. A table is as narrow as they allow.
    pub(crate) fn all(mut self, records: &[T]) -> io::Result<()> {
        if self.format.is_table() {
            let lines: Vec<_> = records.iter().map(|record| self.cells(record)).collect();
            self.table.fit(&lines);
            for line in &lines {
                self.table.line(line, &mut self.out)?;
            }
            return self.out.flush();
        }
        for record in records {
            self.record(record)?;
        }
        self.finish()
    }

    /// Writes one record of a stream. It may wait in a buffer until [`Self::flush`].
    pub(crate) fn record(&mut self, record: &T) -> io::Result<()> {
        if self.format.is_table() {
            let cells = self.cells(record);
            self.table.line(&cells, &mut self.out)?;
        } else {
            let map = Value::Map(
                self.columns.iter().map(|column| (column.name, (column.get)(record))).collect(),
            );
            let first = self.rows == 0;
            let text = match self.format {
                Format::Json => json::element(&map, first),
                Format::Yaml => yaml::element(&map),
                Format::Table | Format::Wide | Format::Jsonl => json::line(&map),
            };
            self.out.write_all(text.as_bytes())?;
        }
        self.rows += 1;
        Ok(())
    }

    /// Hands on what is buffered.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Ends the output, so that it is valid in its format even without a record.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let end = match (self.format, self.rows) {
            (Format::Json, 0) | (Format::Yaml, 0) => "[]\n",
            (Format::Json, _) => "\n]\n",
            _ => "",
        };
        self.out.write_all(end.as_bytes())?;
        self.out.flush()
    }

    fn cells(&self, record: &T) -> Vec<String> {
        let style = self.table.style();
        self.columns.iter().map(|column| (column.get)(record).cell(style)).collect()
    }
}

/// Writes text that was made elsewhere, such as a completion script.
pub(crate) fn print_bytes(text: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    out.flush()
}

/// Waits until the reader of stdout has left, so that `| head` ends a trace even where no record
/// comes that could fail to be written. Never returns where that cannot be known (a file).
pub(crate) async fn stdout_closed() {
    // On a descriptor of our own. The pipe itself stays as it is, blocking: it is shared with
    // other processes, and nothing is written through the one made here.
    let watched =
        io::stdout().as_fd().try_clone_to_owned().and_then(Sender::from_owned_fd_unchecked);
    if let Ok(watched) = watched
        && watched.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    pending().await
}
