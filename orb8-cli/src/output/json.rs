//! Values as JSON. Strings are escaped beyond what JSON asks for: what could steer a terminal is
//! written as `\u….`, which means the same to every parser.

use super::{escape::steers, value::Value};

/// One object on its line.
pub(super) fn line(value: &Value<'_>) -> String {
    let mut text = write(value);
    text.push('\n');
    text
}

/// One element of an array that is written piece by piece; the line's end comes with the next.
pub(super) fn element(value: &Value<'_>, first: bool) -> String {
    let mut text = String::from(if first { "[\n" } else { ",\n" });
    text.push_str(&write(value));
    text
}

fn write(value: &Value<'_>) -> String {
    let text = serde_json::to_string(value).expect("text keys, and nothing that can fail");
    if !text.chars().any(steers) {
        return text;
    }
    // Controls are escaped already, and what is left can only stand in a string.
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if steers(c) {
            let units = c
                .encode_utf16(&mut [0; 2])
                .iter()
                .map(|u| format!("\\u{u:04x}"))
                .collect::<String>();
            escaped.push_str(&units);
        } else {
            escaped.push(c);
        }
    }
    escaped
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
