//! Columns: the one description of a record type that drives every format and `--fields`.

use super::{Format, value::Value};

/// One field of a record `T`.
#[derive(Debug)]
pub(crate) struct Column<T> {
    /// As in the protocol, in JSON, in YAML and in `--fields`.
    pub name: &'static str,
    /// Above the column of a table.
    pub header: &'static str,
    /// Where it is shown when the user does not choose.
    pub place: Place,
    /// What it usually takes in a streaming table, in characters. Longer values are shown whole
    /// and widen the column from there on.
    pub width: usize,
    /// The value in a record.
    pub get: for<'a> fn(&'a T) -> Value<'a>,
}

/// Where a column is shown by default. `--fields` reaches all of them in every format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In both tables and in the data formats.
    Everywhere,
    /// In the wide table and in the data formats.
    Wide,
    /// In the data formats only.
    Data,
    /// In both tables only: composed for people from fields that the data formats have apart.
    People,
    /// In the wide table only: the same, for people with room.
    WidePeople,
}

impl Place {
    fn shows(self, format: Format) -> bool {
        match self {
            Place::Everywhere => true,
            Place::Wide => format != Format::Table,
            Place::Data => !format.is_table(),
            Place::People => format.is_table(),
            Place::WidePeople => format == Format::Wide,
        }
    }
}

/// The columns to show: those of `--fields` in its order, or those that the format has by default.
///
/// # Errors
/// With a message that lists the candidates, when a field does not exist.
pub(crate) fn select<T>(
    all: &'static [Column<T>],
    fields: &[String],
    format: Format,
) -> Result<Vec<&'static Column<T>>, String> {
    if fields.is_empty() {
        return Ok(all.iter().filter(|column| column.place.shows(format)).collect());
    }
    fields
        .iter()
        .map(|field| {
            let field = field.trim();
            all.iter().find(|column| column.name == field).ok_or_else(|| unknown(all, field))
        })
        .collect()
}

/// The same for records of several nodes: a table then says which, where the user did not choose.
pub(crate) fn of_nodes<T>(
    all: &'static [Column<T>],
    fields: &[String],
    format: Format,
) -> Result<Vec<&'static Column<T>>, String> {
    if !fields.is_empty() {
        return select(all, fields, format);
    }
    let shows = |column: &&Column<T>| column.place.shows(format) || column.name == "node";
    Ok(all.iter().filter(shows).collect())
}

fn unknown<T>(all: &[Column<T>], field: &str) -> String {
    let names: Vec<_> = all.iter().map(|column| column.name).collect();
    let nearest = names
        .iter()
        .map(|name| (distance(name, field), *name))
        .min()
        .filter(|(distance, _)| *distance <= 1 + field.len() / 4);
    let hint = nearest.map_or(String::new(), |(_, name)| format!("; did you mean '{name}'?"));
    format!("unknown field '{field}' in --fields{hint}\nfields: {}", names.join(", "))
}

/// Edits (insert, delete, replace) that turn one text into the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replace = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pet {
        name: String,
        legs: u32,
    }

    static PETS: &[Column<Pet>] = &[
        Column {
            name: "name",
            header: "NAME",
            place: Place::Everywhere,
            width: 8,
            get: |pet| Value::text(&pet.name),
        },
        Column {
            name: "legs",
            header: "LEGS",
            place: Place::Wide,
            width: 4,
            get: |pet| Value::number(pet.legs),
        },
        Column {
            name: "summary",
            header: "PET",
            place: Place::People,
            width: 8,
            get: |pet| Value::owned(format!("{} on {}", pet.name, pet.legs)),
        },
        Column { name: "uid", header: "UID", place: Place::Data, width: 8, get: |_| Value::Absent },
    ];

    fn names(fields: &[&str], format: Format) -> Result<Vec<&'static str>, String> {
        let fields: Vec<_> = fields.iter().map(ToString::to_string).collect();
        Ok(select(PETS, &fields, format)?.into_iter().map(|column| column.name).collect())
    }

    #[test]
    fn every_format_has_its_own_default_columns() {
        assert_eq!(names(&[], Format::Table).unwrap(), ["name", "summary"]);
        assert_eq!(names(&[], Format::Wide).unwrap(), ["name", "legs", "summary"]);
        assert_eq!(names(&[], Format::Jsonl).unwrap(), ["name", "legs", "uid"]);
    }

    #[test]
    fn chosen_fields_come_in_the_chosen_order_whatever_the_format() {
        for format in [Format::Table, Format::Json] {
            assert_eq!(names(&["uid", " name"], format).unwrap(), ["uid", "name"]);
        }
    }

    #[test]
    fn an_unknown_field_lists_the_candidates_and_the_nearest() {
        let error = names(&["nmae"], Format::Table).unwrap_err();
        assert!(error.contains("did you mean 'name'?"), "{error}");
        assert!(error.contains("name, legs, summary, uid"), "{error}");
        let error = names(&["colour"], Format::Table).unwrap_err();
        assert!(!error.contains("did you mean"), "{error}");
        assert!(names(&[""], Format::Table).is_err());
    }

    #[test]
    fn distances_count_edits() {
        for (a, b, edits) in
            [("", "", 0), ("abc", "abc", 0), ("abc", "", 3), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a, b), edits);
            assert_eq!(distance(b, a), edits);
        }
    }
}
