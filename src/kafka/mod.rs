//! Kafka clients. Only this folder uses rdkafka.
//!
//! ```text
//! publish  outgoing (an event of a row) ─▶ envelope (headers, value) ─▶ partitioner
//!            ─▶ producer, transaction (send, commit) ─▶ acks (acknowledgements)
//!          publisher sends single records and waits for each
//! consume  consumer (a group member; member_context reports its rebalances) ─▶ feed (one per
//!            partition) ─▶ incoming (a record, owned) ─▶ message (parses it)
//!          format, foreign_id: records that are not CloudEvents;   gap: removed records;
//!          topic_ids: topics that are created again
//! topics   topics, directory (queries), create, admin (changes), lookout (missing ones)
//! read     offsets (single queries of partitions) ─▶ reader (topics up to measured ends)
//! any      settings, call (time limits), client_error, ping, broker, cluster_info, context
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
mod client_error;
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
mod incoming;
mod lookout;
mod member_context;
mod message;
mod offsets;
mod outgoing;
mod partitioner;
#[cfg(feature = "health")]
mod ping;
mod producer;
mod publisher;
mod reader;
mod settings;
mod silent_context;
mod topic_ids;
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
pub(crate) use call::{
    ASK_LIMIT, ASK_TIMEOUT, Beat, OVERDUE, Replaceable, Unanswered, bounded, watched,
};
pub(crate) use client_error::{ClientError, ClusterError};
pub(crate) use consumer::{ConsumerError, Known, Member, MemberError, Membership};
#[cfg(feature = "try")]
pub(crate) use create::create_topic;
pub(crate) use create::{Creation, create_like};
pub(crate) use directory::Directory;
pub use envelope::EnvelopeFormat;
pub(crate) use envelope::EnvelopeWriter;
pub(crate) use feed::Feed;
pub(crate) use foreign_id::identity_by_place;
#[cfg(feature = "cli")]
pub(crate) use format::is_structured;
pub(crate) use gap::Gap;
pub(crate) use incoming::{Buffers, Incoming, Place};
pub(crate) use lookout::Lookout;
pub(crate) use member_context::Change;
pub use message::Malformed;
pub(crate) use message::Message;
#[cfg(all(any(test, fuzzing), feature = "relay"))]
pub(crate) use message::fuzz_record;
pub(crate) use offsets::{Committed, Partition, PartitionExtent};
pub(crate) use outgoing::{Outgoing, Value};
pub(crate) use partitioner::partition_of;
#[cfg(feature = "health")]
pub(crate) use ping::Ping;
pub(crate) use producer::{Headers, Producer, Record, SendError, Transactional};
pub(crate) use publisher::{Letter, LetterError, Publisher};
#[cfg(feature = "cli")]
pub(crate) use reader::{
    Behind, Part, PartEnd, Read, RecordSearch, SearchEnd, backlog, extents, follow, groups_behind,
    offsets_at, read_parts, search_records,
};
pub(crate) use reader::{Isolation, SILENCE_MAX, TopicReader, Unhandled, read_to_the_end};
pub use settings::{PropertyFault, Settings};
pub(crate) use topic_ids::{TopicId, TopicIds, TopicWatch};
pub(crate) use topics::{
    TopicError, Topics, answers, message_bytes_max, partitions_of, retention, topic_names,
};
pub(crate) use transaction::FenceError;
