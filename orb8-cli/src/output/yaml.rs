//! Values as YAML in block style. What could steer a terminal is escaped, as in JSON.

use super::{escape::steers, value::Value};

/// One item of a top-level sequence.
pub(super) fn element(value: &Value<'_>) -> String {
    write(&[value])
}

/// A whole document.
pub(super) fn document(value: &Value<'_>) -> String {
    write(value)
}

fn write<T: serde::Serialize>(value: &T) -> String {
    let text = serde_saphyr::to_string(value).expect("text keys, and nothing that can fail");
    let harmless = |c: char| c == '\n' || !steers(c);
    if text.chars().all(harmless) {
        return text;
    }
    // Strings with such characters are double-quoted (see `Value`), so an escape means the same.
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match u32::from(c) {
            _ if harmless(c) => escaped.push(c),
            code @ 0..=0xffff => escaped.push_str(&format!("\\u{code:04X}")),
            code => escaped.push_str(&format!("\\U{code:08X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_become_items_of_one_sequence() {
        let record = Value::Map(vec![
            ("pod_name", Value::text("web-1")),
            ("src_ip", Value::text("10.0.0.1")),
            ("bytes", Value::Bytes(7)),
            ("interfaces", Value::List(vec![Value::text("veth1"), Value::text("no")])),
            ("vlan_id", Value::Absent),
        ]);
        assert_eq!(
            element(&record),
            "- pod_name: web-1\n  src_ip: \"10.0.0.1\"\n  bytes: 7\n  interfaces:\n  - veth1\n  - \"no\"\n  vlan_id: null\n"
        );
    }

    #[test]
    fn documents_nest() {
        let inner = Value::Map(vec![("a", Value::Number(1)), ("b", Value::List(vec![]))]);
        let outer = Value::Map(vec![
            ("usage", inner.clone()),
            ("signals", Value::List(vec![inner.clone(), inner])),
        ]);
        assert_eq!(
            document(&outer),
            "usage:\n  a: 1\n  b: []\nsignals:\n- a: 1\n  b: []\n- a: 1\n  b: []\n"
        );
    }

    proptest! {
        #[test]
        fn any_string_survives_a_parser_and_cannot_steer_a_terminal(string: String) {
            let text = element(&Value::Map(vec![("s", Value::text(&string))]));
            prop_assert!(!text.trim_end_matches('\n').chars().any(steers));
            let parsed: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
            prop_assert_eq!(parsed[0]["s"].as_str(), Some(string.as_str()), "{}", text);
        }

        #[test]
        fn words_that_look_like_something_else_stay_strings(
            string in "[yYnNtTfFoO~.+-]?[a-zA-Z0-9_.:-]{0,6}",
        ) {
            let text = element(&Value::Map(vec![("s", Value::text(&string))]));
            let parsed: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
            prop_assert_eq!(parsed[0]["s"].as_str(), Some(string.as_str()), "{}", text);
        }
    }
}
