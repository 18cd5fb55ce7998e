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
//! The spans themselves are in `subscriber/attempt/spans.rs`, `saga/drive.rs` and
//! `relay/pipeline/publisher/spans.rs`.
//!
//! Formats: W3C Trace Context and W3C Baggage. Names of spans and attributes follow OpenTelemetry's
//! semantic conventions for messaging, version 1.37.

#[cfg(feature = "otel")]
mod context;
#[cfg(not(feature = "otel"))]
mod without;

#[cfg(feature = "otel")]
pub(crate) use context::inject;
#[cfg(all(feature = "otel", any(feature = "relay", feature = "subscriber")))]
pub(crate) use context::parsed;
#[cfg(all(feature = "otel", feature = "subscriber"))]
pub(crate) use context::{baggage, continue_trace};
#[cfg(all(not(feature = "otel"), feature = "subscriber"))]
pub(crate) use without::continue_trace;
#[cfg(not(feature = "otel"))]
pub(crate) use without::inject;
