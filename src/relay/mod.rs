//! The relay: the path of events from committed transactions to Kafka topics.
//!
//! ```text
//! supervisor: one session after the other
//!   leadership ─▶ startup ─▶ source (table | log | parked) ─▶ row ─▶ pipeline ─▶ sink ─▶ Kafka
//!                                                             routing ─┘  │
//!               position topic, Postgres, slot ◀─ checkpoint ◀────────────┘
//! ```
//!
//! | folder | content |
//! |---|---|
//! | `supervisor` | sessions, the back-off between them, and the state passed between them |
//! | `leadership` | the lease, and the relay's row in Postgres |
//! | `startup` | conditions of a start, and the start position |
//! | `source` | the table, the log and released events, and the choice between them |
//! | `row` | decoding of the outbox's rows. Pure |
//! | `pipeline` | publishing with back-pressure, and checkpoints |
//! | `routing` | the topic of an event. Pure |
//! | `sink` | producers and transactions |
//! | `parked` | undeliverable events and the events behind them |
//! | `position` | the position of a relay. Pure |
//! | `maintenance` | retention and scheduled events |
//! | `monitor` | stalls, readiness, metrics |

// The command line calls the rest.
#![cfg_attr(not(feature = "cli"), allow(dead_code, unused_imports))]

mod error;
pub(crate) mod leadership;
pub(crate) mod maintenance;
mod monitor;
mod options;
mod parked;
pub(crate) mod pipeline;
pub(crate) mod position;
mod routing;
mod row;
mod sink;
mod source;
pub(crate) mod startup;
mod supervisor;

#[cfg(any(test, fuzzing))]
pub(crate) use {
    position::fuzz_position_journal,
    source::{fuzz_copy, fuzz_row},
};

pub use crate::kafka::EnvelopeFormat;
pub use error::RelayError;
#[cfg(feature = "cli")]
pub(crate) use leadership::holder::{Holder, holder};
pub use maintenance::retention::RetentionOptions;
pub use monitor::metrics::{CheckState, RelayCheck, RelayMetrics};
#[cfg(feature = "cli")]
pub(crate) use options::debezium::ADDITIONAL_MAX;
pub use options::debezium::{
    AdditionalColumn, DebeziumOutbox, ExistingRows, HandOver, OutboxField, OutboxRows, Placement,
};
pub use options::{
    DeliveryGuarantee, OnUndeliverable, RelayOptions, SourceKind, TopicLimits, TopicOptions,
    UndeliverableOptions,
};
#[cfg(feature = "cli")]
pub(crate) use options::{is_dead_letter_topic, is_relay_name};
pub use routing::rewrite::{RewriteError, TopicRewrite};
#[cfg(feature = "cli")]
pub(crate) use routing::template::TopicRule;
pub use routing::template::{TemplateError, TopicTemplate};
pub use source::connector_handover::{Offset, OffsetError};
#[cfg(feature = "cli")]
pub(crate) use startup::preflight::{Condition, Level, examine_all, examine_positions};
pub use supervisor::Relay;
