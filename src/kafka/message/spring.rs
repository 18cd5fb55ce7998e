//! Headers that Spring Kafka's header mapper writes.

use std::{borrow::Cow, collections::BTreeMap};

use crate::kafka::incoming::Incoming;

/// The header with the Java types of the other headers, written by Spring Kafka's header mapper.
pub(super) const SPRING_HEADER_TYPES: &str = "spring_json_header_types";

/// Returns the record without the JSON quotes that Spring Kafka's header mapper puts around values
/// that are not strings in Java, such as a `UUID`, a `URI` or a time. Returns `None` for every
/// other record.
pub(super) fn with_plain_headers(record: &Incoming) -> Option<Incoming> {
    let types: BTreeMap<Cow<'_, str>, Cow<'_, str>> =
        serde_json::from_slice(record.header(SPRING_HEADER_TYPES)?).ok()?;
    let text_of = |name: &[u8], value: &[u8]| {
        let is_quoted =
            value.first() == Some(&b'"') && types.contains_key(std::str::from_utf8(name).ok()?);
        is_quoted
            .then(|| serde_json::from_slice::<String>(value).ok())
            .flatten()
    };
    let texts: Vec<Option<String>> = record
        .headers_with_nulls()
        .map(|(name, value)| text_of(name, value?))
        .collect();
    if texts.iter().all(Option::is_none) {
        return None;
    }
    let headers = record
        .headers_with_nulls()
        .zip(&texts)
        .map(|((name, value), text)| {
            let name = std::str::from_utf8(name).unwrap_or_default();
            (name, text.as_deref().map(str::as_bytes).or(value))
        });
    Some(Incoming::new(
        record.place(),
        record.key(),
        record.value(),
        headers,
    ))
}
