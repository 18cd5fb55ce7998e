//! The path of every event to Kafka, shared by all sources.

pub(crate) mod checkpoint;
pub(crate) mod clock;
pub(crate) mod publish;
pub(crate) mod publisher;
