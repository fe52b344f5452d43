//! Strings that came from a pod, made harmless for a terminal.

use std::borrow::Cow;

/// The text with every character escaped that a terminal could take as a command, that hides, or
/// that changes the order in which others are shown. Backslashes are doubled, so that two
/// different texts stay different.
pub(crate) fn for_terminal(text: &str) -> Cow<'_, str> {
    if text.chars().all(|c| c != '\\' && !steers(c)) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c == '\\' || steers(c) { escaped.extend(c.escape_default()) } else { escaped.push(c) }
    }
    Cow::Owned(escaped)
}

/// Whether a character does something other than to appear: C0 and C1 controls, bidirectional
/// and other invisible formatting, line and paragraph separators, tags.
pub(super) fn steers(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_names_are_left_alone() {
        for name in ["web-7d9f", "prod/web", "10.0.0.1:80", "[fe80::1]:53", "grün"] {
            assert!(matches!(for_terminal(name), Cow::Borrowed(same) if same == name));
        }
    }

    #[test]
    fn escape_sequences_and_bidi_overrides_become_visible() {
        assert_eq!(for_terminal("\u{1b}[2J"), "\\u{1b}[2J");
        assert_eq!(for_terminal("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(for_terminal("a\nb\tc"), "a\\nb\\tc");
        assert_eq!(for_terminal("\u{9b}31m"), "\\u{9b}31m");
    }

    proptest! {
        #[test]
        fn the_output_never_holds_a_steering_character(text in any::<String>()) {
            prop_assert!(!for_terminal(&text).chars().any(steers));
        }

        #[test]
        fn different_texts_stay_different(a in "[\\\\u{}0-9a\u{1b}\u{202e}]*", b in "[\\\\u{}0-9a\u{1b}\u{202e}]*") {
            prop_assert_eq!(a == b, for_terminal(&a) == for_terminal(&b));
        }
    }
}
