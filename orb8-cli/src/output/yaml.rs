//! Values as YAML in block style. Only strings that no YAML version can mistake are left bare.

use std::fmt::Write;

use super::{escape::steers, json::write_scalar, value::Value};

/// One item of a top-level sequence.
pub(super) fn element(value: &Value<'_>) -> String {
    let mut text = String::with_capacity(512);
    write_item(&mut text, value, 0);
    text
}

/// A whole document.
pub(super) fn document(value: &Value<'_>) -> String {
    let mut text = String::with_capacity(4096);
    match value {
        Value::Map(entries) if !entries.is_empty() => write_map(&mut text, entries, 0, false),
        value => {
            write_inline(&mut text, value);
            text.push('\n');
        }
    }
    text
}

fn write_item(text: &mut String, value: &Value<'_>, indent: usize) {
    pad(text, indent);
    text.push_str("- ");
    match value {
        Value::Map(entries) if !entries.is_empty() => write_map(text, entries, indent + 2, true),
        value => {
            write_inline(text, value);
            text.push('\n');
        }
    }
}

/// `inline`: the first key continues the line of its item.
fn write_map(text: &mut String, entries: &[(&str, Value<'_>)], indent: usize, inline: bool) {
    for (index, (key, value)) in entries.iter().enumerate() {
        if index > 0 || !inline {
            pad(text, indent);
        }
        write_string(text, key);
        text.push(':');
        match value {
            Value::Map(entries) if !entries.is_empty() => {
                text.push('\n');
                write_map(text, entries, indent + 2, false);
            }
            Value::List(items) if !items.is_empty() => {
                text.push('\n');
                for item in items {
                    write_item(text, item, indent);
                }
            }
            value => {
                text.push(' ');
                write_inline(text, value);
                text.push('\n');
            }
        }
    }
}

/// What fits behind a key. Lists in lists do not occur in records, but are written nonetheless.
fn write_inline(text: &mut String, value: &Value<'_>) {
    match value {
        Value::Text(string) => write_string(text, string),
        Value::Map(_) => text.push_str("{}"),
        Value::List(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                write_inline(text, item);
            }
            text.push(']');
        }
        scalar => write_scalar(text, scalar),
    }
}

fn pad(text: &mut String, indent: usize) {
    text.extend(std::iter::repeat_n(' ', indent));
}

fn write_string(text: &mut String, string: &str) {
    if is_bare(string) {
        text.push_str(string);
        return;
    }
    text.push('"');
    for c in string.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            c if steers(c) || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                let _ = match u32::from(c) {
                    code @ 0..=0xffff => write!(text, "\\u{code:04X}"),
                    code => write!(text, "\\U{code:08X}"),
                };
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

/// A letter, then letters, digits and a few harmless signs, and no word that YAML 1.1 takes for
/// a truth value or for nothing.
fn is_bare(string: &str) -> bool {
    const WORDS: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    string.starts_with(|c: char| c.is_ascii_alphabetic())
        && string.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
        && !WORDS.iter().any(|word| word.eq_ignore_ascii_case(string))
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
