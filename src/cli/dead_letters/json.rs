//! A dead letter as JSON.

use base64::Engine as _;
use serde::Serialize;

use crate::cli::escape::escaped_bytes;
use crate::inspect::dead_letters::LetterSummary;
use crate::subscriber::failure::redrive::DeadLetter;

/// A letter with its headers and its value.
#[derive(Serialize)]
pub(super) struct WholeLetter<'l> {
    #[serde(flatten)]
    letter: LetterSummary,
    headers: Vec<Header>,
    /// The value if it is text.
    value: Option<&'l str>,
    /// The value if it is not text.
    value_base64: Option<String>,
}

#[derive(Serialize)]
struct Header {
    name: String,
    value: String,
}

impl<'l> WholeLetter<'l> {
    pub(super) fn of(letter: &'l DeadLetter) -> Self {
        let headers = letter.record.headers().map(|(name, value)| Header {
            name: escaped_bytes(name),
            value: escaped_bytes(value),
        });
        let value = letter.record.value();
        let text = value.and_then(|value| std::str::from_utf8(value).ok());
        Self {
            letter: LetterSummary::from(letter),
            headers: headers.collect(),
            value: text,
            value_base64: value
                .filter(|_| text.is_none())
                .map(|value| base64::engine::general_purpose::STANDARD.encode(value)),
        }
    }
}
