//! OUT: from a committed transaction to a Kafka topic.
//!
//! ```text
//! source (wal | table) ──▶ forward: route ─▶ envelope ──▶ sink ──▶ acknowledgements ──▶ checkpoint
//! ```
//!
//! `run` supervises sessions, `lease` says which relay of a name works, `slot` makes the log follow the outbox, `ledger` is
//! the relay's row in Postgres. `watermark`, `position`, `route`, `tally` and the row decoder are pure.

mod checkpoint;
mod error;
mod forward;
mod lease;
mod ledger;
mod observe;
mod options;
mod position;
mod route;
mod run;
mod sink;
mod slot;
mod source;
mod tally;
mod watermark;

#[cfg(fuzzing)]
pub(crate) use source::fuzz_row;

pub use crate::kafka::EnvelopeFormat;
pub use error::RelayError;
pub use observe::{Check, CheckState, Observer};
#[cfg(feature = "cli")]
pub(crate) use options::is_relay_name;
pub use options::{Delivery, RelayOptions, SourceKind, TopicOptions};
pub use route::{TemplateError, TopicTemplate};
pub use run::Relay;
#[cfg(feature = "cli")]
pub(crate) use slot::slot_name;
