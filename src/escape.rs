//! Escaping of text from rows, records, servers and file names.
//!
//! Such text may contain terminal escape sequences, line breaks that forge rows, and characters
//! that reorder or hide other characters. All of them are written as Rust escapes: `\n`, `\u{1b}`.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Returns one line of text with every unprintable character escaped.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    replaced(text, is_unprintable, |out, character| {
        out.extend(character.escape_default())
    })
}

/// Returns lines of text with every unprintable character except the line break escaped.
pub(crate) fn escaped_lines(text: &str) -> Cow<'_, str> {
    let is_wanted = |character: char| character != '\n' && is_unprintable(character);
    replaced(text, is_wanted, |out, character| {
        out.extend(character.escape_default())
    })
}

/// Returns a JSON document with every unprintable character except the line break written as
/// `\uXXXX`.
///
/// serde_json escapes only the C0 controls. All other such characters are inside strings, so the
/// value does not change.
pub(crate) fn escaped_json(json: &str) -> Cow<'_, str> {
    let is_wanted = |character: char| character != '\n' && is_unprintable(character);
    replaced(json, is_wanted, |out, character| {
        for unit in character.encode_utf16(&mut [0; 2]) {
            write!(out, "\\u{unit:04x}").expect("a string takes any text");
        }
    })
}

/// Returns bytes as escaped text, or as hexadecimal digits after `(binary)` if they are not UTF-8
/// or contain a NUL, as binary numbers do.
pub(crate) fn escaped_bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => escaped(text).into_owned(),
        _ => bytes
            .iter()
            .fold(String::from("(binary) 0x"), |mut hex, byte| {
                write!(hex, "{byte:02x}").expect("a string takes any text");
                hex
            }),
    }
}

/// Returns at most `characters_max` characters, and `…` in place of the rest.
pub(crate) fn shortened(text: &str, characters_max: usize) -> Cow<'_, str> {
    match text.char_indices().nth(characters_max) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

fn replaced(
    text: &str,
    is_wanted: impl Fn(char) -> bool,
    write: impl Fn(&mut String, char),
) -> Cow<'_, str> {
    if !text.contains(&is_wanted) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_wanted(character) {
            write(&mut out, character);
        } else {
            out.push(character);
        }
    }
    Cow::Owned(out)
}

/// Returns `true` for characters that control a terminal, or that are invisible and change how
/// their neighbours are shown.
///
/// These are the general categories Cc, Cf, Zl and Zp, private use, non-characters, and blank
/// fillers.
fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{34f}'
                | '\u{600}'..='\u{605}'
                | '\u{61c}'
                | '\u{6dd}'
                | '\u{70f}'
                | '\u{890}'..='\u{891}'
                | '\u{8e2}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{e000}'..='\u{f8ff}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{fffe}'..='\u{ffff}'
                | '\u{110bd}'
                | '\u{110cd}'
                | '\u{13430}'..='\u{1343f}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{10ffff}'
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_character_that_is_not_shown_as_itself_is_escaped() {
        for (text, expected) in [
            ("order-7", "order-7"),
            (
                "längst 日本 👍 e\u{301} \\ \" '",
                "längst 日本 👍 e\u{301} \\ \" '",
            ),
            ("\u{1b}]0;x\u{7}", "\\u{1b}]0;x\\u{7}"),
            ("a\nb\r\tc\0", "a\\nb\\r\\tc\\u{0}"),
            ("\u{7f}\u{9b}31m", "\\u{7f}\\u{9b}31m"),
            (
                "\u{202e}cod.exe\u{2066}\u{200f}",
                "\\u{202e}cod.exe\\u{2066}\\u{200f}",
            ),
            (
                "\u{2028}\u{2029}\u{200b}\u{feff}\u{ad}",
                "\\u{2028}\\u{2029}\\u{200b}\\u{feff}\\u{ad}",
            ),
            ("\u{e0041}\u{e000}", "\\u{e0041}\\u{e000}"),
        ] {
            assert_eq!(escaped(text), expected);
        }
        assert_eq!(escaped_lines("a\n\u{1b}b\n"), "a\n\\u{1b}b\n");
    }

    #[test]
    fn bytes_that_are_no_text_are_marked_and_shown_as_digits() {
        assert_eq!(escaped_bytes(b"a\x1bb"), "a\\u{1b}b");
        assert_eq!(escaped_bytes(&[0x61, 0x9b, 0xff]), "(binary) 0x619bff");
        assert_eq!(escaped_bytes(&7_i32.to_be_bytes()), "(binary) 0x00000007");
        assert_eq!(
            (shortened("häßlich", 3), shortened("abc", 3)),
            ("häß…".into(), "abc".into())
        );
    }

    proptest! {
        #[test]
        fn any_text_becomes_one_printable_line_and_any_json_stays_the_same_value(
            text in any::<String>()
        ) {
            prop_assert!(!escaped(&text).contains(is_unprintable));
            prop_assert!(!escaped_lines(&text).replace('\n', "").contains(is_unprintable));
            let json = serde_json::json!({ "a": text, "b": [text] });
            let json = serde_json::to_string_pretty(&json).expect("JSON");
            let shown = escaped_json(&json);
            prop_assert!(!shown.replace('\n', "").contains(is_unprintable));
            let read: serde_json::Value = serde_json::from_str(&shown).expect("it is still JSON");
            prop_assert_eq!(read, serde_json::json!({ "a": text, "b": [text] }));
        }
    }
}
