//! OUT: from a committed transaction to a Kafka topic.

mod observe;
mod options;
mod run;

pub use observe::{Check, CheckState, Observer};
pub use options::{Delivery, EnvelopeFormat, RelayOptions, SourceKind, TopicOptions};
pub use run::{Relay, RelayError};
