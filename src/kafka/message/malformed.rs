//! Reasons why a record is not an event.

/// Reason why a record is not an event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// An attribute is not valid text.
    #[error("the attribute `{0}` is not UTF-8")]
    NotText(&'static str),
    /// An attribute that CloudEvents requires is missing.
    #[error("the CloudEvent has no `{0}`")]
    Missing(&'static str),
    /// The version is not a number, or is 0.
    #[error("the version {0:?} is not a positive integer")]
    Version(String),
    /// The value is not a CloudEvent in JSON.
    #[error("the value is not a CloudEvent: {0}")]
    Structured(String),
    /// The CloudEvents version is not supported; its attributes may have another meaning.
    #[error("the CloudEvents version {0:?} is not supported; send specversion 1.0")]
    SpecVersion(String),
    /// The event is wrapped in an envelope with its schema.
    #[error(
        "the value is an envelope of Kafka Connect with `schema` and `payload`; set \
         `schemas.enable=false` for its converter, then replay or send the event again"
    )]
    ConnectEnvelope,
    /// Too many names of headers are not valid text.
    #[error("the names of many headers are not UTF-8; the record is kept without its headers")]
    HeaderNames,
    /// The value has an unsupported format.
    #[error("the value is in a format that is not supported: {0}")]
    Format(String),
    /// The record does not contain an event type.
    #[error(
        "the record has no event type: neither `ce_type` nor a header `eventType`, and no type is \
         assumed for this topic"
    )]
    NoType,
}
