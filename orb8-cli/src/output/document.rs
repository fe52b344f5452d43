//! One object as a whole document, for answers that are not a list of records.

use std::io::{self, Write};

use super::{Format, json, value::Value, yaml};

/// The object in a data format; the table formats are the caller's own, and get JSON here.
pub(crate) fn write(value: &Value<'_>, format: Format, out: &mut dyn Write) -> io::Result<()> {
    let text = match format {
        Format::Yaml => yaml::document(value),
        Format::Table | Format::Wide | Format::Json | Format::Jsonl => json::line(value),
    };
    out.write_all(text.as_bytes())?;
    out.flush()
}
