//! The span of an attempt in OpenTelemetry: its relation to the publishers, and its attributes.

use tracing::Span;

use crate::subscriber::{Delivery, TraceRelation};

#[cfg(not(feature = "otel"))]
pub(super) fn follow(_: &Span, _: &Delivery, _: &str, _: TraceRelation) {}

#[cfg(not(feature = "otel"))]
pub(super) fn fail(_: &Span, _: &'static str) {}

#[cfg(feature = "otel")]
pub(super) use with_otel::{fail, follow};

#[cfg(feature = "otel")]
mod with_otel {
    use opentelemetry::Context;
    use opentelemetry::baggage::BaggageExt as _;
    use opentelemetry::trace::{SpanContext, TraceContextExt as _};
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;

    use super::{Delivery, Span, TraceRelation};
    use crate::event::headers;
    use crate::trace::{baggage, parsed};

    /// Connects the span of an attempt with the spans that published its events, and sets its
    /// attributes. Does nothing if the span is disabled.
    pub(in crate::subscriber::attempt) fn follow(
        span: &Span,
        delivery: &Delivery,
        group: &str,
        relation: TraceRelation,
    ) {
        if span.is_disabled() {
            return;
        }
        let first = delivery.first();
        let record = first.as_it_came();
        span.record("otel.name", format!("process {}", record.topic));
        let publisher = of_event(|name| first.header(name));
        match (publisher, relation) {
            // Events of a batch have different publishers, and a span has one parent.
            (Some(publisher), TraceRelation::Child) if delivery.len() == 1 => {
                let context = Context::new().with_remote_span_context(publisher);
                let context = match first.header(headers::BAGGAGE) {
                    Some(text) => context.with_baggage(baggage(text)),
                    None => context,
                };
                // Fails without a layer of OpenTelemetry, which then takes no span at all.
                let _ = span.set_parent(context);
            }
            _ => {
                for message in delivery.messages() {
                    if let Some(publisher) = of_event(|name| message.header(name)) {
                        span.add_link(publisher);
                    }
                }
            }
        }
        for (name, value) in [
            ("messaging.system", "kafka"),
            ("messaging.operation.name", "process"),
            ("messaging.operation.type", "process"),
            ("messaging.consumer.group.name", group),
            ("messaging.destination.name", &record.topic),
            ("messaging.message.id", &first.id()),
        ] {
            span.set_attribute(name, value.to_owned());
        }
        span.set_attribute(
            "messaging.destination.partition.id",
            record.partition.to_string(),
        );
        span.set_attribute("messaging.kafka.offset", record.offset);
        if delivery.len() > 1 {
            let events = i64::try_from(delivery.len()).unwrap_or(i64::MAX);
            span.set_attribute("messaging.batch.message_count", events);
        }
    }

    /// Sets the kind of error of a failed span.
    pub(in crate::subscriber::attempt) fn fail(span: &Span, kind: &'static str) {
        span.set_attribute("error.type", kind);
    }

    fn of_event<'m>(header: impl Fn(&'static str) -> Option<&'m str>) -> Option<SpanContext> {
        let traceparent = header(headers::TRACEPARENT).or_else(|| header("ce_traceparent"))?;
        let tracestate = header(headers::TRACESTATE).or_else(|| header("ce_tracestate"));
        parsed(traceparent, tracestate)
    }
}
