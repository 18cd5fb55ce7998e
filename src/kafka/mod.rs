//! Kafka: the only folder that names rdkafka.
//!
//! A record's way out: `Outgoing` (what the outbox row says) → `envelope` (its headers and value) → `partitioner`
//! (where its key belongs) → `producer` (sent, and later acknowledged). `topics` knows what exists and creates what may be, `log` reads
//! a topic of the relay's own back.

mod acks;
#[cfg(feature = "cli")]
mod admin;
#[cfg(feature = "health")]
mod dropped;
mod envelope;
#[cfg(feature = "cli")]
mod groups;
mod log;
mod outgoing;
mod partitioner;
#[cfg(feature = "health")]
mod ping;
#[cfg(feature = "cli")]
mod probe;
mod producer;
mod settings;
mod topics;

pub(crate) use acks::{Acks, Failure, Window};
#[cfg(feature = "cli")]
pub(crate) use admin::{delete_topic, grow_topic};
pub use envelope::EnvelopeFormat;
pub(crate) use envelope::EnvelopeWriter;
#[cfg(feature = "cli")]
pub(crate) use groups::{Behind, groups_behind};
pub(crate) use log::read_to_the_end;
pub(crate) use outgoing::{Outgoing, Value};
pub(crate) use partitioner::partition_of;
#[cfg(feature = "health")]
pub(crate) use ping::Ping;
#[cfg(feature = "cli")]
pub(crate) use probe::{Cluster, Topic};
pub(crate) use producer::{Headers, Producer, Record, SendError};
pub use settings::{PropertyFault, Settings};
#[cfg(feature = "cli")]
pub(crate) use topics::partitions_of;
pub(crate) use topics::{TopicError, Topics};
