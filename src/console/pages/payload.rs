//! Payloads and headers, shown on request.

use maud::{Markup, html};
use serde::de::IgnoredAny;
use serde_json::Value;
use uuid::Uuid;

use crate::console::layout::{empty, text, whole};
use crate::console::pages::Page;
use crate::console::view::View;
use crate::escape::{escaped, escaped_bytes, escaped_json};
use crate::inspect::content::{EventContent, PAYLOAD_MAX, Table, content};
use crate::inspect::json::indented;
use crate::inspect::units::size;
use crate::inspect::{Database, InspectError};

/// Bytes of a binary payload that are shown.
const BINARY_MAX: usize = 4 << 10;

/// Content that a request asks for.
pub(super) enum Chosen {
    Nothing,
    /// The table does not contain the event.
    Missing,
    Content(EventContent),
}

/// Reads the content of the event that the parameter `event` names, unless the console hides
/// payloads.
pub(super) async fn chosen(
    view: &View,
    database: &Database,
    table: Table,
) -> Result<Chosen, InspectError> {
    let id: Option<Uuid> = view.params.parsed("event");
    match id.filter(|_| !view.shared.hide_payloads) {
        None => Ok(Chosen::Nothing),
        Some(id) => {
            let found = content(database, table, id).await?;
            Ok(found.map_or(Chosen::Missing, Chosen::Content))
        }
    }
}

/// Returns a link to the content of an event, unless the console hides payloads.
pub(super) fn link(view: &View, page: Page, parameters: &[(&str, &str)]) -> Markup {
    let event = parameters.iter().find(|(name, _)| *name == "event");
    let name = event.map_or("Payload".into(), |(_, id)| {
        format!("Payload of {}", text(id))
    });
    html! {
        @if !view.shared.hide_payloads {
            a class="button small" aria-label=(name) href=(view.page_link(page, parameters)) {
                "Payload"
            }
        }
    }
}

/// Shows the content of an event.
pub(super) fn shown(chosen: &Chosen) -> Markup {
    let content = match chosen {
        Chosen::Nothing => return html! {},
        Chosen::Missing => return empty("The database no longer contains the event."),
        Chosen::Content(content) => content,
    };
    let headers: Vec<(String, String)> = match &content.headers {
        Value::Object(headers) => headers
            .iter()
            .map(|(name, value)| {
                let value = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                (name.clone(), value)
            })
            .collect(),
        other => vec![(String::new(), other.to_string())],
    };
    html! {
        div class="card" {
            h3 { (text(&content.event_type)) " " span class="soft" { "v" (content.version) } }
            (header_list(&headers))
            (value(content))
        }
    }
}

fn value(content: &EventContent) -> Markup {
    let whole = content.size.and_then(|size| usize::try_from(size).ok());
    let whole = whole.unwrap_or_default();
    match (&content.payload, &content.payload_bytes) {
        (Some(json), _) => html! {
            (json_text(json))
            @if content.is_cut { (beginning(json.len(), whole)) }
        },
        (None, Some(bytes)) => bytes_text(bytes, whole),
        (None, None) => html! { p class="soft" { "Tombstone: no payload." } },
    }
}

/// Shows the value of a record, or its beginning.
pub(super) fn record_value(value: &[u8]) -> Markup {
    let max = usize::try_from(PAYLOAD_MAX).unwrap_or_default();
    bytes_text(&value[..value.len().min(max)], value.len())
}

/// Shows headers as a list of names and values.
pub(super) fn header_list(headers: &[(String, String)]) -> Markup {
    html! {
        @if !headers.is_empty() {
            dl class="facts" {
                @for (name, value) in headers {
                    div { dt { (text(name)) } dd { (whole(value)) } }
                }
            }
        }
    }
}

/// Shows JSON with line breaks, or the text as it is.
pub(super) fn json_text(json: &str) -> Markup {
    let shown = match serde_json::from_str::<IgnoredAny>(json) {
        Ok(_) => escaped_json(&indented(json)).into_owned(),
        Err(_) => escaped(json).into_owned(),
    };
    html! { pre tabindex="0" aria-label="Payload" { (shown) } }
}

/// Shows bytes as JSON or text, or as hexadecimal digits. They are the beginning of a payload of
/// `whole` bytes.
fn bytes_text(bytes: &[u8], whole: usize) -> Markup {
    let (shown, length) = match text_of(bytes, bytes.len() < whole) {
        Some(text) => (json_text(text), text.len()),
        None => {
            let part = &bytes[..bytes.len().min(BINARY_MAX)];
            let digits = escaped_bytes(part);
            let shown = html! { pre tabindex="0" aria-label="Payload" { (digits) } };
            (shown, part.len())
        }
    };
    html! {
        (shown)
        @if length < whole { (beginning(length, whole)) }
    }
}

/// Returns bytes as text, unless they are binary. The cut may be inside of a character.
fn text_of(bytes: &[u8], is_cut: bool) -> Option<&str> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) if is_cut && error.error_len().is_none() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    (!text.contains('\0')).then_some(text)
}

fn beginning(shown: usize, whole: usize) -> Markup {
    let bytes = |bytes: usize| size(i64::try_from(bytes).unwrap_or(i64::MAX));
    html! {
        p class="soft" { "Only the first " (bytes(shown)) " of " (bytes(whole)) " are shown." }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_readable_and_never_markup() {
        let json = br#"{"a":"<script>alert(1)</script>"}"#;
        let shown = record_value(json).into_string();
        assert!(
            !shown.contains("<script>") && shown.contains("\n  &quot;a&quot;"),
            "{shown}"
        );
        let shown = json_text("{\"a\":\"\u{202e}\"}").into_string();
        assert!(shown.contains("\\u202e"), "{shown}");
        assert!(json_text("{\"cut").into_string().contains("{&quot;cut"));
        assert!(record_value(&[0, 0xff]).into_string().contains("0x00ff"));
    }

    /// Returns the text that reports a cut.
    fn note(shown: &Markup) -> Option<&str> {
        let (_, note) = shown.0.split_once("<p class=\"soft\">")?;
        note.strip_suffix("</p>")
    }

    fn stored(payload: Option<&str>, bytes: Option<&[u8]>, size: usize) -> EventContent {
        let read = payload.map_or_else(|| bytes.map_or(0, <[u8]>::len), str::len);
        EventContent {
            event_type: "Placed".into(),
            version: 1,
            headers: Value::Null,
            payload: payload.map(str::to_owned),
            payload_bytes: bytes.map(<[u8]>::to_vec),
            size: i32::try_from(size).ok(),
            is_cut: read < size,
        }
    }

    #[test]
    fn a_payload_reports_exactly_the_part_that_is_shown() {
        let max = usize::try_from(PAYLOAD_MAX).expect("positive");
        for length in [1, BINARY_MAX, BINARY_MAX + 1, 30_000, max] {
            let (text, binary) = ("x".repeat(length), vec![0xff; length]);
            assert_eq!(
                note(&value(&stored(Some(&text), None, length))),
                None,
                "{length}"
            );
            let bytes = stored(None, Some(text.as_bytes()), length);
            assert_eq!(note(&value(&bytes)), None, "text of {length} bytes");
            let shown = value(&stored(None, Some(&binary), length));
            let expected = format!(
                "Only the first 4.0 KiB of {} are shown.",
                size(length as i64)
            );
            let expected = (length > BINARY_MAX).then_some(expected.as_str());
            assert_eq!(note(&shown), expected, "{length} binary bytes");
        }
        let text = "x".repeat(max);
        let expected = Some("Only the first 64.0 KiB of 1.0 MiB are shown.");
        assert_eq!(note(&value(&stored(Some(&text), None, 1 << 20))), expected);
        assert_eq!(
            note(&value(&stored(None, Some(text.as_bytes()), 1 << 20))),
            expected
        );
        assert_eq!(
            note(&record_value("x".repeat(1 << 20).as_bytes())),
            expected
        );
    }

    #[test]
    fn text_that_is_cut_inside_of_a_character_stays_text() {
        let text = "ä".repeat(PAYLOAD_MAX as usize);
        let shown = record_value(&[b"x", text.as_bytes()].concat()).into_string();
        assert!(
            shown.contains("xää") && !shown.contains("0x"),
            "{shown:.99}"
        );
        let binary = record_value(b"x\xc3").into_string();
        assert!(binary.contains("0x78c3"), "{binary}");
    }
}
