//! Text for a column whose database may not be able to encode it.
//!
//! The encoding of a database is fixed when it is created. A database that is not UTF-8 refuses
//! every statement that contains a character outside of its encoding, and every database refuses
//! NUL. Text that originates elsewhere, such as an error that quotes a record, is therefore sent as
//! bytes and converted by the server.
//!
//! JSON has escapes for characters that an encoding lacks. The type `json` stores them unchanged in
//! every database, while `jsonb` must decode them and therefore has the limits of text.

#[cfg(feature = "subscriber")]
use std::fmt::Write as _;

/// Maximum length of a stored error or reason, in characters.
const CHARS_MAX: usize = 2_000;

/// Returns the SQL expression of type `text` for an expression of type `bytea` that contains
/// UTF-8. In a database with another encoding, each byte outside of ASCII becomes `\nnn`.
pub(crate) fn encodable(bytes: &str) -> String {
    format!(
        "case when pg_catalog.current_setting('server_encoding') in ('UTF8', 'SQL_ASCII') \
         then pg_catalog.convert_from({bytes}, 'UTF8') \
         else pg_catalog.encode({bytes}, 'escape') end"
    )
}

/// Returns the bytes of a text for [`encodable`], without NUL and up to 2,000 characters. They are
/// cut here, because a database without an encoding would cut within a character.
pub(crate) fn bytes_of(text: &str) -> Vec<u8> {
    storable(text).into_bytes()
}

/// Returns the part of a text that a column can store: without NUL, and up to 2,000 characters.
pub(crate) fn storable(text: &str) -> String {
    let kept = text.chars().filter(|character| *character != '\0');
    kept.take(CHARS_MAX).collect()
}

/// Returns the SQL expression of type `text` for JSON. Both arguments are expressions of type
/// `bytea`: the JSON in UTF-8, and its replacement for a database with another encoding. A null
/// replacement means that every database can store the JSON itself.
#[cfg(feature = "subscriber")]
pub(crate) fn encodable_json(json: &str, replacement: &str) -> String {
    format!(
        "pg_catalog.convert_from(case \
           when pg_catalog.current_setting('server_encoding') in ('UTF8', 'SQL_ASCII') \
           then {json} else coalesce({replacement}, {json}) end, 'UTF8')"
    )
}

/// Returns `true` if a column or its encoding cannot represent a value (PostgreSQL manual, appendix
/// A, class 22). The same statement would fail again.
#[cfg(feature = "subscriber")]
pub(crate) fn is_of_value(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code.starts_with("22"))
}

/// Returns JSON with an escape instead of each character outside of ASCII. Returns `None` if there
/// is no such character. The result is the replacement for a column of type `json`.
#[cfg(feature = "subscriber")]
pub(crate) fn ascii_json(json: &str) -> Option<String> {
    if json.is_ascii() {
        return None;
    }
    // Such characters occur only within strings.
    Some(json.chars().fold(String::new(), |mut ascii, character| {
        match character.is_ascii() {
            true => ascii.push(character),
            false => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _ = write!(ascii, "\\u{unit:04x}");
                }
            }
        }
        ascii
    }))
}

/// Returns a text without characters outside of ASCII, in the form of [`encodable`].
#[cfg(feature = "subscriber")]
pub(crate) fn ascii_text(text: &str) -> String {
    text.bytes().fold(String::new(), |mut ascii, byte| {
        match byte {
            b'\\' => ascii.push_str("\\\\"),
            0 | 0x80.. => {
                let _ = write!(ascii, "\\{byte:03o}");
            }
            _ => ascii.push(char::from(byte)),
        }
        ascii
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters_and_has_no_nul() {
        assert_eq!(bytes_of("a\0\u{e9}"), "a\u{e9}".as_bytes());
        assert_eq!(bytes_of(&"\u{4e2d}".repeat(3_000)).len(), 6_000);
    }

    #[test]
    fn json_outside_of_ascii_has_an_equal_form_within() {
        let json = "{\"caf\u{e9}\":\"a\u{20ac}\u{1f600}\\\\\"}";
        let ascii = ascii_json(json).expect("another form");
        assert_eq!(ascii, r#"{"caf\u00e9":"a\u20ac\ud83d\ude00\\"}"#);
        let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(parsed(&ascii), parsed(json));
        assert_eq!(ascii_json(r#"{"a":"\u20ac"}"#), None);
    }

    #[test]
    fn text_outside_of_ascii_is_escaped_as_the_server_does() {
        assert_eq!(ascii_text("a\\\u{20ac}"), r"a\\\342\202\254");
    }
}
