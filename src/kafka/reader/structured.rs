//! Conversion of CloudEvents from structured to binary mode.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::value::RawValue;

use super::Malformed;
use crate::kafka::incoming::Incoming;

/// Prefix of the headers that a CloudEvent's other attributes become.
const PREFIX: &str = "ce_";

/// Converts structured mode to binary mode: attributes become headers, and `data` or `data_base64`
/// becomes the value.
pub(super) fn from_structured(record: &Incoming) -> Result<Incoming, Malformed> {
    use base64::Engine as _;
    let malformed = |error: &dyn std::fmt::Display| Malformed::Structured(error.to_string());
    let attributes: BTreeMap<Cow<'_, str>, &RawValue> =
        serde_json::from_slice(record.value().unwrap_or_default())
            .map_err(|error| malformed(&error))?;
    let mut headers: Vec<(String, Cow<'_, [u8]>)> =
        Vec::with_capacity(attributes.len() + record.headers().len());
    if !attributes.contains_key("specversion") {
        return Err(Malformed::Missing("specversion"));
    }
    for (name, value) in record
        .headers()
        .filter(|(name, _)| !name.eq_ignore_ascii_case(b"content-type"))
    {
        headers.push((
            String::from_utf8_lossy(name).into_owned(),
            Cow::Borrowed(value),
        ));
    }
    let mut data: Option<Cow<'_, [u8]>> = None;
    for (name, raw) in &attributes {
        // The text of a string without its quotes; numbers and booleans as they are written.
        let text = || match serde_json::from_str::<String>(raw.get()) {
            Ok(text) => Cow::Owned(text.into_bytes()),
            Err(_) => Cow::Borrowed(raw.get().as_bytes()),
        };
        match &**name {
            "data" => data = (raw.get() != "null").then(|| Cow::Borrowed(raw.get().as_bytes())),
            "data_base64" => {
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(&*text())
                    .map_err(|error| malformed(&error))?;
                data = Some(Cow::Owned(bytes));
            }
            "datacontenttype" => headers.push(("content-type".into(), text())),
            "traceparent" | "tracestate" => headers.push((name.to_string(), text())),
            _ => headers.push((format!("{PREFIX}{name}"), text())),
        }
    }
    let borrowed = headers
        .iter()
        .map(|(name, value)| (name.as_str(), Some(&**value)));
    Ok(Incoming::new(
        record.place(),
        record.key(),
        data.as_deref(),
        borrowed,
    ))
}
