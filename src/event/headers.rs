//! Metadata that is published next to the data of an event.

use std::collections::BTreeMap;
use std::collections::btree_map;

use serde::{Deserialize, Serialize};

use super::{InvalidEvent, reserved::refuse_reserved_header};

/// The correlation id. All events that result from one request have the same.
pub const CORRELATION_ID: &str = "correlationid";
/// The id of the event or command that caused this one.
pub const CAUSATION_ID: &str = "causationid";
/// The trace and span of the publisher, in the format of W3C Trace Context.
pub const TRACEPARENT: &str = "traceparent";
/// The vendor-specific part of the trace context, next to [`TRACEPARENT`].
pub const TRACESTATE: &str = "tracestate";
/// Values that accompany a request through all services, in the format of W3C Baggage.
pub const BAGGAGE: &str = "baggage";
/// The media type of a payload that is not JSON.
pub const CONTENT_TYPE: &str = "content-type";

/// The maximum length of a header name, in bytes. Every record repeats the names, so they are
/// short.
pub const NAME_BYTES_MAX: usize = 128;

/// The maximum number of headers of one event. Infrastructure needs a few, and every consumer
/// parses all of them.
pub const COUNT_MAX: usize = 64;

/// The headers of an event: a small map of strings. Each entry becomes a header of the Kafka record
/// with the same name.
///
/// Headers are for metadata that infrastructure needs without reading the payload: correlation,
/// tracing, tenancy. Data belongs in the payload.
///
/// ```
/// use tidings::event::{Headers, headers};
///
/// let mut headers = Headers::new();
/// headers.insert(headers::CORRELATION_ID, "c-1");
/// headers.insert("tenant", "acme");
/// assert_eq!(headers.get("correlationid"), Some("c-1"));
/// let all: Vec<_> = headers.iter().collect();
/// assert_eq!(all, [("correlationid", "c-1"), ("tenant", "acme")]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Headers(BTreeMap<String, String>);

impl Headers {
    /// Creates an empty set of headers.
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Sets a header and replaces an earlier one of the same name. Names are checked when the event
    /// is published.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.insert(name.into(), value.into());
    }

    /// Returns the value of a header. Names are case-sensitive, as in Kafka.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Removes a header and returns its value.
    pub fn remove(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// Returns all names and values, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Returns the number of headers.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns `true` if there are no headers.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the total length of all names and values, in bytes.
    pub fn byte_len(&self) -> usize {
        self.0
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum()
    }

    /// Returns the correlation id, see [`CORRELATION_ID`].
    pub fn correlation_id(&self) -> Option<&str> {
        self.get(CORRELATION_ID)
    }

    /// Returns the causation id, see [`CAUSATION_ID`].
    pub fn causation_id(&self) -> Option<&str> {
        self.get(CAUSATION_ID)
    }

    /// Returns the trace context, see [`TRACEPARENT`].
    pub fn traceparent(&self) -> Option<&str> {
        self.get(TRACEPARENT)
    }

    /// Checks all names and values.
    ///
    /// A name has 1 to [`NAME_BYTES_MAX`] visible ASCII characters. It does not start with `ce_`,
    /// `kafka_dlt-` or `tidings_` in any letter case, because Tidings writes these headers itself.
    /// The value of `content-type` is not a CloudEvents media type. No value contains a control
    /// character. There are at most [`COUNT_MAX`] headers.
    ///
    /// # Errors
    ///
    /// Returns the first [`InvalidEvent`] that is found.
    pub fn check(&self) -> Result<(), InvalidEvent> {
        if self.len() > COUNT_MAX {
            return Err(InvalidEvent::HeaderCount { count: self.len() });
        }
        for (name, value) in self.iter() {
            let well_formed = (1..=NAME_BYTES_MAX).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_graphic());
            if !well_formed {
                return Err(InvalidEvent::HeaderName {
                    name: name.to_owned(),
                });
            }
            refuse_reserved_header(name, value)?;
            if value.chars().any(char::is_control) {
                return Err(InvalidEvent::HeaderValue {
                    name: name.to_owned(),
                });
            }
        }
        Ok(())
    }
}

// === impl Headers ===

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(headers: I) -> Self {
        Self(
            headers
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

impl<N: Into<String>, V: Into<String>> Extend<(N, V)> for Headers {
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, headers: I) {
        self.0.extend(
            headers
                .into_iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
    }
}

impl IntoIterator for Headers {
    type Item = (String, String);
    type IntoIter = btree_map::IntoIter<String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_record_should_carry_is_refused() {
        for name in ["", "a b", "naïve", "tab\t", &"n".repeat(129)] {
            let headers = Headers::from_iter([(name, "v")]);
            assert_eq!(
                headers.check(),
                Err(InvalidEvent::HeaderName { name: name.into() })
            );
        }
        assert_eq!(
            Headers::from_iter([("x-tenant", "Ünïcode"), ("traceparent", "")]).check(),
            Ok(())
        );
    }

    #[test]
    fn a_value_of_more_than_one_line_of_text_is_refused() {
        for value in ["\0", "a\nb", "\u{7f}"] {
            assert_eq!(
                Headers::from_iter([("a", value)]).check(),
                Err(InvalidEvent::HeaderValue { name: "a".into() })
            );
        }
    }

    #[test]
    fn more_headers_than_anybody_needs_are_refused() {
        let headers = |count: usize| Headers::from_iter((0..count).map(|n| (n.to_string(), "v")));
        assert_eq!(headers(COUNT_MAX).check(), Ok(()));
        assert_eq!(
            headers(COUNT_MAX + 1).check(),
            Err(InvalidEvent::HeaderCount { count: 65 })
        );
    }
}
