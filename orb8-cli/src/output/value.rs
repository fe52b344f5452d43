//! One value of a record, and how people read it.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Serialize, Serializer};
use serde_saphyr::DoubleQuoted;

use super::escape;

/// What a column gives. People and programs see different forms of the same value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    /// Not known, or without meaning for this record.
    Absent,
    Text(Cow<'a, str>),
    Number(u64),
    Signed(i64),
    Real(f64),
    /// A number of bytes.
    Bytes(u64),
    /// Nanoseconds since the Unix epoch.
    TimeNs(i64),
    /// The same, of which people want to know how long ago it was.
    Since(i64),
    Flag(bool),
    List(Vec<Value<'a>>),
    Map(Vec<(&'static str, Value<'a>)>),
}

/// For whom a table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Rounded: `1.2 MiB`, `12:34:56.789`.
    Short,
    /// Exact: `1258291`, `2026-01-31T12:34:56.789012345Z`.
    Exact,
}

impl<'a> Value<'a> {
    pub(crate) fn text(text: &'a str) -> Self {
        Value::Text(Cow::Borrowed(text))
    }

    pub(crate) fn owned(text: String) -> Self {
        Value::Text(Cow::Owned(text))
    }

    pub(crate) fn number(number: impl Into<u64>) -> Self {
        Value::Number(number.into())
    }

    pub(crate) fn optional(number: Option<u32>) -> Self {
        number.map_or(Value::Absent, Value::number)
    }

    /// As a cell of a table, safe for a terminal. Nothing is shown as `-`.
    pub(crate) fn cell(&self, style: Style) -> String {
        match self {
            Value::Absent => String::from("-"),
            Value::Text(text) if text.is_empty() => String::from("-"),
            Value::Text(text) => escape::for_terminal(text).into_owned(),
            Value::Number(number) => number.to_string(),
            Value::Signed(number) => number.to_string(),
            Value::Real(number) => format!("{number:.2}"),
            Value::Bytes(bytes) if style == Style::Short => human_bytes(*bytes),
            Value::Bytes(bytes) => bytes.to_string(),
            Value::TimeNs(time) => human_time(*time, style),
            Value::Since(time) if style == Style::Short => human_age(*time, SystemTime::now()),
            Value::Since(time) => human_time(*time, style),
            Value::Flag(flag) => flag.to_string(),
            Value::List(values) if values.is_empty() => String::from("-"),
            Value::List(values) => {
                values.iter().map(|value| value.cell(style)).collect::<Vec<_>>().join(",")
            }
            Value::Map(entries) => entries
                .iter()
                .map(|(key, value)| format!("{key}={}", value.cell(style)))
                .collect::<Vec<_>>()
                .join(","),
        }
    }
}

/// As data: exact, and with the types that JSON has.
impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Absent => serializer.serialize_none(),
            // For YAML, where only this style has escapes; JSON has no other.
            Value::Text(text) if text.chars().any(escape::steers) => {
                DoubleQuoted(text).serialize(serializer)
            }
            Value::Text(text) => serializer.serialize_str(text),
            Value::Number(number) | Value::Bytes(number) => serializer.serialize_u64(*number),
            Value::Signed(number) | Value::TimeNs(number) | Value::Since(number) => {
                serializer.serialize_i64(*number)
            }
            Value::Real(number) => serializer.serialize_f64(*number),
            Value::Flag(flag) => serializer.serialize_bool(*flag),
            Value::List(values) => serializer.collect_seq(values),
            Value::Map(entries) => {
                serializer.collect_map(entries.iter().map(|(key, value)| (key, value)))
            }
        }
    }
}

/// The name of a protobuf enum value as JSON shows it: `FLOW_STATE_ENDED` is `ended`.
pub(crate) fn enum_name(name: &str, prefix: &str) -> Value<'static> {
    Value::owned(name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase())
}

/// Binary units with one digit after the point: `999 B`, `1.2 MiB`.
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths of the unit, rounded half up, in integers: a float would round 2^63 and more.
    let mut shift = 10;
    for unit in UNITS {
        let tenths = (u128::from(bytes) * 10 + (1 << (shift - 1))) >> shift;
        if tenths < 10_240 || unit == "EiB" {
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
        shift += 10;
    }
    unreachable!("u64::MAX is 16 EiB")
}

/// Time of day in UTC, or RFC 3339 with nanoseconds.
fn human_time(ns: i64, style: Style) -> String {
    let Some(since_epoch) = u64::try_from(ns).ok().filter(|ns| *ns > 0) else {
        return String::from("-");
    };
    let time = UNIX_EPOCH + Duration::from_nanos(since_epoch);
    match style {
        Style::Exact => humantime::format_rfc3339_nanos(time).to_string(),
        Style::Short => {
            let full = humantime::format_rfc3339_millis(time).to_string();
            full.get(11..23).unwrap_or(&full).to_owned()
        }
    }
}

/// How long ago it was, in its two largest units: `4m12s`, `3d4h`.
fn human_age(ns: i64, now: SystemTime) -> String {
    let Some(then) = u64::try_from(ns).ok().filter(|ns| *ns > 0) else {
        return String::from("-");
    };
    let age = now.duration_since(UNIX_EPOCH + Duration::from_nanos(then)).unwrap_or_default();
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_are_rounded_and_never_show_1024_of_a_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_258_291, "1.2 MiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }

    #[test]
    fn times_are_utc_and_unknown_ones_a_dash() {
        let time = Value::TimeNs(1_700_000_000_123_456_789);
        assert_eq!(time.cell(Style::Short), "22:13:20.123");
        assert_eq!(time.cell(Style::Exact), "2023-11-14T22:13:20.123456789Z");
        assert_eq!(Value::TimeNs(0).cell(Style::Short), "-");
        assert_eq!(Value::TimeNs(-5).cell(Style::Exact), "-");
    }

    #[test]
    fn ages_have_two_units_and_what_is_still_to_come_none() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let age = |seconds: i64| human_age((1_000_000 - seconds) * 1_000_000_000, now);
        let ages = [(0, "0s"), (59, "59s"), (252, "4m12s"), (7_260, "2h1m"), (273_600, "3d4h")];
        for (seconds, text) in ages {
            assert_eq!(age(seconds), text);
        }
        assert_eq!(age(-5), "0s", "clocks differ");
        assert_eq!(human_age(0, now), "-");
    }

    #[test]
    fn enum_names_lose_their_prefix() {
        assert_eq!(
            enum_name("ATTRIBUTED_BY_SOCKET_CGROUP", "ATTRIBUTED_BY_"),
            Value::text("socket_cgroup")
        );
    }

    proptest! {
        #[test]
        fn any_number_of_bytes_is_within_five_percent_of_what_is_shown(bytes: u64) {
            let text = human_bytes(bytes);
            let (number, unit) = text.split_once(' ').unwrap();
            let power = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
                .iter().position(|known| *known == unit).unwrap();
            let shown = number.parse::<f64>().unwrap() * 1024f64.powi(i32::try_from(power).unwrap());
            prop_assert!((shown - bytes as f64).abs() <= 0.05 * bytes as f64, "{bytes}: {text}");
            prop_assert!(text.len() <= 10, "{text}");
        }

        #[test]
        fn any_time_has_a_cell(ns: i64) {
            prop_assert!(!Value::TimeNs(ns).cell(Style::Short).is_empty());
            prop_assert!(!Value::TimeNs(ns).cell(Style::Exact).is_empty());
        }

        #[test]
        fn a_cell_never_steers_a_terminal(text: String, list: Vec<String>) {
            let list = Value::List(list.iter().map(|text| Value::text(text)).collect());
            for cell in [Value::text(&text).cell(Style::Short), list.cell(Style::Exact)] {
                prop_assert!(!cell.chars().any(escape::steers), "{cell:?}");
            }
        }
    }
}
