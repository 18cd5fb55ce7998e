//! Spans of the relay: one for each sent event whose trace is sampled.
//!
//! The span is a child of the span that published the event. It begins when the event was created,
//! and ends when its record is handed to the Kafka client. Its event `committed` is the commit of
//! the transaction, if the relay reads the log. An event that is sent again, after a crash or a
//! failed batch, has a second span.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::global::{self, BoxedTracer};
use opentelemetry::trace::{Span as _, SpanContext, SpanKind, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue};

use crate::{relay::row::native::Row, trace::parsed};

/// Length of a `traceparent` of version 00.
const TRACEPARENT_BYTES: usize = 55;

/// Creates the spans.
pub(super) struct SendSpans {
    /// `None` if no spans are wanted.
    tracer: Option<BoxedTracer>,
}

impl SendSpans {
    /// Uses the tracer provider that the process has set at this time.
    pub(super) fn new(is_on: bool) -> Self {
        Self {
            tracer: is_on.then(|| global::tracer("tidings")),
        }
    }

    /// Reports an event that was handed to the Kafka client.
    pub(super) fn sent(&self, row: &Row<'_>, topic: &str, partition: i32) {
        let Some(tracer) = &self.tracer else { return };
        if let Some(publisher) = sampled(row.event.headers) {
            report(tracer, publisher, row, topic, partition);
        }
    }
}

#[cold]
fn report(
    tracer: &BoxedTracer,
    publisher: SpanContext,
    Row {
        event,
        committed_at,
        ..
    }: &Row<'_>,
    topic: &str,
    partition: i32,
) {
    let size = event.value.bytes().map_or(0, <[u8]>::len);
    let attributes = [
        KeyValue::new("messaging.system", "kafka"),
        KeyValue::new("messaging.operation.name", "send"),
        KeyValue::new("messaging.operation.type", "send"),
        KeyValue::new("messaging.destination.name", topic.to_owned()),
        KeyValue::new("messaging.destination.partition.id", partition.to_string()),
        KeyValue::new("messaging.message.id", event.id.to_string()),
        KeyValue::new(
            "messaging.message.body.size",
            i64::try_from(size).unwrap_or(i64::MAX),
        ),
        KeyValue::new("tidings.event.type", event.event_type.to_owned()),
    ];
    let created = time(event.occurred_at);
    let mut span = tracer
        .span_builder(format!("send {topic}"))
        .with_kind(SpanKind::Producer)
        .with_start_time(created)
        .with_attributes(attributes)
        .start_with_context(tracer, &Context::new().with_remote_span_context(publisher));
    if let Some(committed_at) = *committed_at {
        span.add_event_with_timestamp("committed", time(committed_at), Vec::new());
    }
    // A clock may have been set back since the event was created.
    span.end_with_timestamp(SystemTime::now().max(created));
}

/// Returns the trace context in the headers of a row, if the trace is sampled. Reads the JSON as
/// text: this runs for every event, and most traces are not sampled.
fn sampled(headers: &str) -> Option<SpanContext> {
    let traceparent = text_of(headers, "\"traceparent\"")?;
    let is_sampled =
        |text: &&str| text.len() == TRACEPARENT_BYTES && matches!(text.as_bytes()[54], b'1' | b'3');
    let context = parsed(
        Some(traceparent).filter(is_sampled)?,
        text_of(headers, "\"tracestate\""),
    )?;
    context.is_sampled().then_some(context)
}

/// Returns the text of a string in a JSON object of strings. `key` has its quotes, so that it
/// cannot match within a value, where quotes are escaped. Returns `None` for a text with an escape.
fn text_of<'h>(headers: &'h str, key: &str) -> Option<&'h str> {
    let rest = &headers[headers.find(key)? + key.len()..];
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    let (text, _) = rest.strip_prefix('"')?.split_once('"')?;
    (!text.contains('\\')).then_some(text)
}

fn time(micros: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sampled_trace_is_found_in_the_headers_of_a_row() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for headers in [
            format!(r#"{{"traceparent":"{parent}"}}"#),
            format!(r#"{{"tenant": "a\"b", "traceparent" : "{parent}", "tracestate": "v=1"}}"#),
            format!(r#"{{"note":"\"traceparent\":\"x\"","traceparent":"{parent}"}}"#),
        ] {
            let found = sampled(&headers).expect("a sampled trace");
            assert_eq!(found.span_id().to_string(), "b7ad6b7169203331", "{headers}");
        }
    }

    #[test]
    fn other_headers_have_no_sampled_trace() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
        for headers in [
            String::new(),
            "{}".into(),
            format!(r#"{{"traceparent":"{parent}-00"}}"#),
            format!(r#"{{"note":"\"traceparent\":\"{parent}-01\""}}"#),
            r#"{"traceparent":"#.into(),
            r#"{"traceparent":"ü"}"#.into(),
            r#"{"traceparent":7}"#.into(),
        ] {
            assert!(sampled(&headers).is_none(), "{headers}");
        }
    }
}
