//! OUT: from a committed transaction to a Kafka topic.
//!
//! ```text
//! drive: source (table | wal) ──▶ forward: route ─▶ envelope ──▶ sink ──▶ books: what is safe ──▶ ledger, slot
//! ```
//!
//! `run` supervises sessions, `carried` is the state that one session leaves to the next, `pooler` sees that they are the relay's own, `lease` says which relay of a name works, `resume` decides where it
//! goes on, `position_topic` reads the positions that Kafka has, `preflight` whether a relay may start, `continuity` whether this is still the same database, `names` what its objects are called, `drive` which source is read, `slot` makes the log follow the outbox, `leave` what a relay that ends leaves in it, `ledger` is
//! the relay's row in Postgres, `parked` what cannot be delivered and waits.
//! `debezium` is all that a table made for Debezium needs instead. `retention` deletes what every relay has published, `scheduled` moves events to the outbox when they are due. `operator` is what a
//! person does with relays by commands. `position`, `route` and the row decoder are pure.

mod access;
mod books;
mod carried;
pub(crate) mod clock;
mod continuity;
mod debezium;
mod drive;
mod error;
mod forward;
mod holder;
mod lease;
mod leave;
mod ledger;
mod names;
mod observe;
#[cfg(feature = "cli")]
pub(crate) mod operator;
mod options;
mod parked;
mod pooler;
mod position;
mod position_topic;
mod preflight;
mod pulse;
mod readiness;
mod resume;
mod retention;
mod rewrite;
mod route;
mod run;
mod scheduled;
mod server;
mod sink;
mod slot;
mod source;
pub(crate) mod transaction_timeout;
mod watchdog;
mod watched;

#[cfg(any(test, fuzzing))]
pub(crate) use {
    position::fuzz_position_journal,
    source::{fuzz_copy, fuzz_row},
};

pub use crate::kafka::EnvelopeFormat;
#[cfg(feature = "cli")]
pub(crate) use debezium::ADDITIONAL_MAX;
pub use debezium::{AdditionalColumn, DebeziumOutbox, ExistingRows, HandOver, Offset, OffsetError, OutboxField, OutboxRows, Placement};
pub use error::RelayError;
#[cfg(feature = "cli")]
pub(crate) use holder::{Holder, holder};
pub use observe::{Check, CheckState, Observer};
pub use options::{Delivery, OnUndeliverable, RelayOptions, SourceKind, TopicLimits, TopicOptions, UndeliverableOptions};
#[cfg(feature = "cli")]
pub(crate) use options::{is_dead_letter_topic, is_relay_name};
#[cfg(feature = "cli")]
pub(crate) use preflight::{Condition, Level, examine_all, examine_positions};
pub use retention::RetentionOptions;
pub use rewrite::{RewriteError, TopicRewrite};
pub use route::{TemplateError, TopicTemplate};
pub use run::Relay;
