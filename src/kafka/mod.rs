//! Kafka clients. Only this folder uses rdkafka.
//!
//! ```text
//! publish  outgoing (an event of a row) ─▶ envelope (headers, value) ─▶ partitioner
//!            ─▶ producer, transaction (send, commit) ─▶ acks (acknowledgements)
//!          publisher sends single records and waits for each
//! consume  consumer (a group member; member_context reports its rebalances) ─▶ feed (one per
//!            partition) ─▶ incoming (a record, owned) ─▶ reader (parses it into a message)
//!          format, foreign_id: records that are not CloudEvents;   gap: removed records
//! topics   topics, directory (queries), create, admin (changes), lookout (missing ones)
//! read     log (one topic to its end), shelf (with the commits of a group), group_reader, groups
//! any      settings, call (time limits), ping, broker, cluster_info, context
//! ```

// Without the relay or without subscribers, half of this module is unused.
#![cfg_attr(
    not(all(feature = "relay", feature = "subscriber")),
    allow(dead_code, unused_imports)
)]

mod acks;
#[cfg(feature = "cli")]
mod admin;
mod broker;
mod call;
#[cfg(feature = "cli")]
mod cluster_info;
mod commit;
mod consumer;
mod context;
mod create;
mod directory;
mod drop_on_thread;
mod envelope;
mod feed;
mod foreign_id;
mod format;
mod gap;
mod group_reader;
#[cfg(feature = "cli")]
mod groups;
mod incoming;
mod log;
mod lookout;
mod member_context;
mod outgoing;
mod partitioner;
#[cfg(feature = "health")]
mod ping;
mod producer;
mod publisher;
mod reader;
mod settings;
mod shelf;
mod silent_context;
mod topics;
mod transaction;

#[cfg(feature = "cli")]
pub(crate) use self::cluster_info::{Cluster, Topic};
pub(crate) use acks::{Acks, Failure, Refused, Window};
#[cfg(test)]
pub(crate) use acks::{Ground, RefusedRecord};
#[cfg(feature = "cli")]
pub(crate) use admin::{delete_topic, grow_topic};
pub(crate) use broker::broker_setting;
pub(crate) use call::{Beat, OVERDUE, Replaceable, Unanswered, bounded, watched};
pub(crate) use consumer::{
    ASK_TIMEOUT, Committed, Known, Member, MemberError, Membership, Partition,
};
pub(crate) use create::{Creation, create_like};
pub(crate) use directory::Directory;
pub use envelope::EnvelopeFormat;
pub(crate) use envelope::EnvelopeWriter;
pub(crate) use feed::Feed;
pub(crate) use foreign_id::identity_by_place;
pub(crate) use gap::Gap;
pub(crate) use group_reader::{Ends, GroupReader, Unhandled};
#[cfg(feature = "cli")]
pub(crate) use groups::{Behind, Read, groups_behind};
pub(crate) use incoming::{Buffers, Incoming, Place};
pub(crate) use log::{Extent, read_to_the_end};
pub(crate) use lookout::Lookout;
pub(crate) use member_context::Change;
pub(crate) use outgoing::{Outgoing, Value};
pub(crate) use partitioner::partition_of;
#[cfg(feature = "health")]
pub(crate) use ping::Ping;
pub(crate) use producer::{Headers, Producer, Record, SendError, Transactional};
pub(crate) use publisher::{Letter, LetterError, Publisher};
pub use reader::Malformed;
pub(crate) use reader::Message;
#[cfg(all(any(test, fuzzing), feature = "relay"))]
pub(crate) use reader::fuzz_record;
pub use settings::{PropertyFault, Settings};
pub(crate) use shelf::{READ_TIMEOUT, Shelf};
pub(crate) use topics::{
    TopicError, Topics, answers, message_bytes_max, partitions_of, retention, topic_names,
};
pub(crate) use transaction::FenceError;
