//! Trace context of events: the bridge between the headers of events and OpenTelemetry.
//!
//! ```text
//! span of the request ─▶ publish ─▶ `traceparent` of the outbox row ─▶ relay: span `send`
//!                                              │
//!                                              ▼ header of the record
//!                                 span `process` of the handler ─▶ events that it publishes
//! ```
//!
//! An event without a `traceparent` of its own gets the context of the span that is current when
//! the event is created. Without the feature `otel` there is no such context, and the events that a
//! handler publishes keep the context of the handled event.
//!
//! Formats: W3C Trace Context and W3C Baggage. Names of spans and attributes follow OpenTelemetry's
//! semantic conventions for messaging, version 1.37.

#[cfg(feature = "otel")]
mod context;
#[cfg(all(feature = "otel", feature = "relay"))]
mod send;
#[cfg(not(feature = "otel"))]
mod without;

#[cfg(feature = "otel")]
pub(crate) use context::inject;
#[cfg(all(feature = "otel", feature = "subscriber"))]
pub(crate) use context::{continue_trace, fail, follow};
#[cfg(all(feature = "otel", feature = "relay"))]
pub(crate) use send::SendSpans;
#[cfg(not(feature = "otel"))]
pub(crate) use without::inject;
#[cfg(all(not(feature = "otel"), feature = "subscriber"))]
pub(crate) use without::{continue_trace, fail, follow};

/// The relation between the span of a handler and the span that published the event.
#[cfg(feature = "subscriber")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceRelation {
    /// The handler's span is a child: a request and all its effects are one trace.
    #[default]
    Child,
    /// The handler's span begins a trace of its own that links to the publisher's span. Choose it
    /// if one request causes so many events that a single trace becomes unreadable.
    Link,
}
