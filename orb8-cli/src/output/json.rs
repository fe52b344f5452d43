//! Values as JSON. Strings are escaped beyond what JSON asks for: what could steer a terminal is
//! written as `\u….`, which means the same to every parser.

use std::fmt::Write;

use super::{escape::steers, value::Value};

/// One object on its line.
pub(super) fn line(value: &Value<'_>) -> String {
    let mut text = String::with_capacity(512);
    write_value(&mut text, value);
    text.push('\n');
    text
}

/// One element of an array that is written piece by piece; the line's end comes with the next.
pub(super) fn element(value: &Value<'_>, first: bool) -> String {
    let mut text = String::with_capacity(512);
    text.push_str(if first { "[\n" } else { ",\n" });
    write_value(&mut text, value);
    text
}

fn write_value(text: &mut String, value: &Value<'_>) {
    match value {
        Value::Absent => text.push_str("null"),
        Value::Text(string) => write_string(text, string),
        Value::List(values) => {
            text.push('[');
            for (index, value) in values.iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                write_value(text, value);
            }
            text.push(']');
        }
        Value::Map(entries) => {
            text.push('{');
            for (index, (key, value)) in entries.iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                write_string(text, key);
                text.push(':');
                write_value(text, value);
            }
            text.push('}');
        }
        scalar => write_scalar(text, scalar),
    }
}

/// A value that JSON and YAML write alike: a number, a truth value, or nothing.
pub(super) fn write_scalar(text: &mut String, value: &Value<'_>) {
    // Writing to a string cannot fail.
    let _ = match value {
        Value::Number(number) | Value::Bytes(number) => write!(text, "{number}"),
        Value::Signed(number) | Value::TimeNs(number) => write!(text, "{number}"),
        Value::Real(number) if number.is_finite() => write!(text, "{number:?}"),
        Value::Flag(flag) => write!(text, "{flag}"),
        _ => text.write_str("null"),
    };
}

fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            c if steers(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_of_64_bits_stay_numbers() {
        let value = Value::Map(vec![
            ("bytes", Value::Bytes(u64::MAX)),
            ("time", Value::TimeNs(i64::MIN)),
            ("none", Value::Absent),
            ("real", Value::Real(1.0)),
            ("list", Value::List(vec![Value::Flag(true), Value::text("a")])),
        ]);
        assert_eq!(
            line(&value),
            "{\"bytes\":18446744073709551615,\"time\":-9223372036854775808,\"none\":null,\
             \"real\":1.0,\"list\":[true,\"a\"]}\n"
        );
    }

    proptest! {
        #[test]
        fn any_string_survives_a_parser_and_cannot_steer_a_terminal(string: String) {
            let text = line(&Value::Map(vec![("s", Value::text(&string))]));
            prop_assert!(!text.trim_end_matches('\n').chars().any(steers));
            let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(parsed["s"].as_str(), Some(string.as_str()));
        }

        #[test]
        fn any_number_survives_a_parser(number: u64, signed: i64, real in -1e300f64..1e300) {
            let text = line(&Value::List(vec![Value::Number(number), Value::Signed(signed)]));
            let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(parsed[0].as_u64(), Some(number));
            prop_assert_eq!(parsed[1].as_i64(), Some(signed));
            // serde_json's own reading of floats is off by a bit without one of its features.
            let text = line(&Value::Real(real));
            prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
            prop_assert_eq!(text.trim_end().parse::<f64>().ok(), Some(real));
        }
    }
}
