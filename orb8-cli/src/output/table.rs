//! Aligned tables like kubectl's, complete or streaming.

use std::io::{self, Write};

use super::{Format, Look, value::Style};

/// Between two columns.
const GAP: &str = "   ";

/// Widths and headers. A streaming table starts with the usual widths and only ever widens, so
/// that lines stay comparable; a complete one is fitted to its lines first.
#[derive(Debug)]
pub(crate) struct Table {
    headers: Vec<&'static str>,
    widths: Vec<usize>,
    style: Style,
    bold: bool,
    headers_due: bool,
}

impl Table {
    /// `columns` are headers with usual widths, in characters.
    pub(crate) fn new(columns: impl Iterator<Item = (&'static str, usize)>, look: Look) -> Self {
        let (headers, widths): (Vec<_>, Vec<_>) =
            columns.map(|(header, width)| (header, width.max(header.len()))).unzip();
        let style = if look.format == Format::Table { Style::Short } else { Style::Exact };
        Table { headers, widths, style, bold: look.color, headers_due: look.headers }
    }

    pub(crate) fn style(&self) -> Style {
        self.style
    }

    /// Makes the columns as narrow as these lines and the headers allow.
    pub(crate) fn fit(&mut self, lines: &[Vec<String>]) {
        let headers = if self.headers_due { self.headers.as_slice() } else { &[] };
        self.widths.fill(0);
        for (width, header) in self.widths.iter_mut().zip(headers) {
            *width = header.len();
        }
        for line in lines {
            self.widen(line);
        }
    }

    /// Writes one line, after the headers if it is the first.
    pub(crate) fn line(&mut self, cells: &[String], out: &mut dyn Write) -> io::Result<()> {
        self.widen(cells);
        if self.headers_due {
            self.headers_due = false;
            let headers = self.padded(self.headers.iter().copied());
            if self.bold {
                writeln!(out, "\x1b[1m{headers}\x1b[0m")?;
            } else {
                writeln!(out, "{headers}")?;
            }
        }
        writeln!(out, "{}", self.padded(cells.iter().map(String::as_str)))
    }

    fn widen(&mut self, cells: &[String]) {
        for (width, cell) in self.widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }

    fn padded<'a>(&self, cells: impl Iterator<Item = &'a str>) -> String {
        let mut line = String::new();
        for (cell, width) in cells.zip(&self.widths) {
            line.push_str(cell);
            let missing = width.saturating_sub(cell.chars().count());
            line.extend(std::iter::repeat_n(' ', missing));
            line.push_str(GAP);
        }
        line.truncate(line.trim_end().len());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(headers: bool) -> Table {
        let look = Look { format: Format::Table, headers, color: false };
        Table::new([("NAME", 6), ("PORT", 2)].into_iter(), look)
    }

    fn write(table: &mut Table, lines: &[[&str; 2]]) -> String {
        let mut out = Vec::new();
        for line in lines {
            table.line(&line.map(String::from), &mut out).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_stream_keeps_its_widths_until_a_longer_value_comes() {
        let text = write(&mut table(true), &[["a", "1"], ["longer-name", "2"], ["b", "3"]]);
        assert_eq!(text, "NAME     PORT\na        1\nlonger-name   2\nb             3\n");
    }

    #[test]
    fn a_complete_table_is_as_narrow_as_its_lines() {
        let mut table = table(true);
        table.fit(&[vec!["a".into(), "1".into()]]);
        assert_eq!(write(&mut table, &[["a", "1"]]), "NAME   PORT\na      1\n");
    }

    #[test]
    fn headers_can_be_left_out() {
        let mut table = table(false);
        table.fit(&[vec!["a".into(), "1".into()]]);
        assert_eq!(write(&mut table, &[["a", "1"]]), "a   1\n");
    }
}
