//! The context of the current span in an event, and the context of an event in a span.

#[cfg(feature = "subscriber")]
use opentelemetry::baggage::{BaggageMetadata, KeyValueMetadata};
use opentelemetry::trace::{SpanContext, TraceContextExt as _};
#[cfg(any(test, feature = "relay", feature = "subscriber"))]
use opentelemetry::trace::{SpanId, TraceFlags, TraceId, TraceState};
use opentelemetry::{Context, baggage::BaggageExt as _};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::event::{Headers, headers};

/// Maximum length of a `tracestate` in bytes. W3C Trace Context requires 512, and systems may pass
/// more.
const TRACESTATE_BYTES_MAX: usize = 2_048;

/// Maximum length of a `baggage` in bytes, from W3C Baggage.
const BAGGAGE_BYTES_MAX: usize = 8_192;

/// Maximum number of entries of a `baggage` that are read.
#[cfg(feature = "subscriber")]
const BAGGAGE_ENTRIES_MAX: usize = 64;

/// Sets the trace headers of an event from the current span, unless it has a `traceparent`.
/// Parts that no event may have are left out: an event never becomes invalid through its trace.
pub(crate) fn inject(into: &mut Headers) {
    if into.traceparent().is_some() {
        return;
    }
    let context = current();
    let span = context.span();
    let span = span.span_context();
    if !span.is_valid() {
        return;
    }
    into.insert(headers::TRACEPARENT, traceparent(span));
    put(
        into,
        headers::TRACESTATE,
        span.trace_state().header(),
        TRACESTATE_BYTES_MAX,
    );
    if into.get(headers::BAGGAGE).is_none() {
        put(
            into,
            headers::BAGGAGE,
            context.baggage().to_string(),
            BAGGAGE_BYTES_MAX,
        );
    }
}

/// Returns the context of the current span of `tracing`, or of OpenTelemetry itself if an
/// application uses that directly.
fn current() -> Context {
    let context = Span::current().context();
    match context.span().span_context().is_valid() {
        true => context,
        false => Context::current(),
    }
}

fn put(into: &mut Headers, name: &str, value: String, bytes_max: usize) {
    let fits = (1..=bytes_max).contains(&value.len());
    if fits && !value.chars().any(char::is_control) {
        into.insert(name, value);
    }
}

fn traceparent(span: &SpanContext) -> String {
    format!(
        "00-{}-{}-{:02x}",
        span.trace_id(),
        span.span_id(),
        span.trace_flags().to_u8()
    )
}

/// Reads a `traceparent` and a `tracestate`. Returns `None` for a text that is no trace context,
/// because a foreign system may send anything.
#[cfg(any(test, feature = "relay", feature = "subscriber"))]
pub(crate) fn parsed(traceparent: &str, tracestate: Option<&str>) -> Option<SpanContext> {
    let hex = |text: &str, digits: usize| {
        let is_hex = text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (text.len() == digits && is_hex).then(|| u128::from_str_radix(text, 16).ok())?
    };
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    // A later version may have more parts, of which nothing is known.
    let is_readable = match hex(version, 2)? {
        0 => parts.next().is_none(),
        version => version != 0xff,
    };
    let context = SpanContext::new(
        TraceId::from_bytes(hex(trace, 32)?.to_be_bytes()),
        SpanId::from_bytes(u64::try_from(hex(span, 16)?).ok()?.to_be_bytes()),
        TraceFlags::new(u8::try_from(hex(flags, 2)?).ok()?),
        true,
        tracestate
            .and_then(|state| state.parse::<TraceState>().ok())
            .unwrap_or_default(),
    );
    (is_readable && context.is_valid()).then_some(context)
}

/// Makes a span a child of the span in these headers, unless a span is current.
#[cfg(feature = "subscriber")]
pub(crate) fn continue_trace(span: &Span, traceparent: Option<&str>, tracestate: Option<&str>) {
    if span.is_disabled() || current().span().span_context().is_valid() {
        return;
    }
    if let Some(parent) = traceparent.and_then(|text| parsed(text, tracestate)) {
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// Reads W3C Baggage. Entries that are not well-formed are left out.
#[cfg(feature = "subscriber")]
pub(crate) fn baggage(text: &str) -> Vec<KeyValueMetadata> {
    if text.len() > BAGGAGE_BYTES_MAX {
        return Vec::new();
    }
    let entry = |entry: &str| {
        let (pair, metadata) = entry.split_once(';').unwrap_or((entry, ""));
        let (key, value) = pair.split_once('=')?;
        let value = percent_encoding::percent_decode_str(value.trim())
            .decode_utf8()
            .ok()?;
        let metadata = BaggageMetadata::from(metadata.trim());
        let opentelemetry::KeyValue { key, value, .. } =
            opentelemetry::KeyValue::new(key.trim().to_owned(), value.into_owned());
        Some(KeyValueMetadata::new(
            key,
            value.as_str().into_owned(),
            metadata,
        ))
    };
    text.split(',')
        .take(BAGGAGE_ENTRIES_MAX)
        .filter_map(entry)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_trace_context_is_read_and_written_unchanged() {
        let context = parsed(PARENT, Some("vendor=1")).expect("a trace context");
        assert!(context.is_sampled() && context.is_remote());
        assert_eq!(traceparent(&context), PARENT);
        assert_eq!(context.trace_state().header(), "vendor=1");
    }

    #[test]
    fn a_text_that_is_no_trace_context_is_none() {
        for text in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-ü-b7ad6b7169203331-01",
        ] {
            assert!(parsed(text, None).is_none(), "{text}");
        }
        let later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more";
        assert!(parsed(later, Some("not=a,state,")).is_some());
    }

    #[test]
    fn an_event_gets_the_current_context_once() {
        let context = parsed(PARENT, Some("vendor=1")).expect("a trace context");
        let baggage = [opentelemetry::KeyValue::new("tenant", "Ünï, x")];
        let context = Context::new()
            .with_remote_span_context(context)
            .with_baggage(baggage);
        let _attached = context.attach();
        let mut event = Headers::new();
        inject(&mut event);
        assert_eq!(event.traceparent(), Some(PARENT));
        assert_eq!(event.get(headers::TRACESTATE), Some("vendor=1"));
        let text = event.get(headers::BAGGAGE).expect("the baggage");
        assert!(text.starts_with("tenant=") && text.is_ascii(), "{text}");
        event.check().expect("valid headers");
        let mut own = Headers::from_iter([(headers::TRACEPARENT, "own")]);
        inject(&mut own);
        assert_eq!((own.len(), own.traceparent()), (1, Some("own")));
    }
}
