//! Conversion of CloudEvents from structured to binary mode.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::value::RawValue;

use super::Malformed;
use crate::kafka::{
    format::{is_json, own_content_type},
    incoming::Incoming,
};

/// Prefix of the headers that a CloudEvent's other attributes become.
const PREFIX: &str = "ce_";

/// A JSON value that stands for an attribute that is not set.
const NULL: &str = "null";

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
    if attributes
        .get("specversion")
        .is_none_or(|raw| raw.get() == NULL)
    {
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
    // An SDK may leave the data's type in the record's header.
    let data_type = match attributes
        .get("datacontenttype")
        .filter(|raw| raw.get() != NULL)
    {
        Some(raw) => Some(Cow::Owned(
            String::from_utf8_lossy(&text_of(raw)).into_owned(),
        )),
        None => own_content_type(record).map(Cow::Borrowed),
    };
    let is_text = data_type.as_deref().is_some_and(|media| !is_json(media));
    headers.extend(
        data_type
            .iter()
            .map(|media| ("content-type".to_owned(), Cow::Borrowed(media.as_bytes()))),
    );
    let mut data: Option<Cow<'_, [u8]>> = None;
    // An attribute that is null is not set.
    for (name, raw) in attributes.iter().filter(|(_, raw)| raw.get() != NULL) {
        let text = || text_of(raw);
        match &**name {
            // Data of another type than JSON is the text of a JSON string.
            "data" if is_text => data = Some(text()),
            "data" => data = Some(Cow::Borrowed(raw.get().as_bytes())),
            "data_base64" => {
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(&*text())
                    .map_err(|error| malformed(&error))?;
                data = Some(Cow::Owned(bytes));
            }
            "datacontenttype" => {}
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

/// Returns a JSON string without its quotes, and any other value as it is written.
fn text_of(raw: &RawValue) -> Cow<'_, [u8]> {
    match serde_json::from_str::<String>(raw.get()) {
        Ok(text) => Cow::Owned(text.into_bytes()),
        Err(_) => Cow::Borrowed(raw.get().as_bytes()),
    }
}
