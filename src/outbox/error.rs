//! Why an event is not published.

use crate::event::{CodecError, EnvelopeError, InvalidEvent};
use crate::postgres::{SchemaNameError, errors::cleaned};

/// Why an event is not published.
///
/// Only [`Database`](Self::Database) and [`MissingTable`](Self::MissingTable) come from Postgres, and leave the caller's transaction
/// aborted. Every other error is found before anything is written: the transaction can go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The outbox was given an unusable schema name.
    #[error(transparent)]
    Schema(#[from] SchemaNameError),
    /// The event has no representation in its format.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The event could never be delivered.
    #[error("event {event_type:?} can never be delivered: {source}")]
    Invalid {
        /// The event's type.
        event_type: String,
        /// What is wrong with it.
        source: InvalidEvent,
    },
    /// The payload is larger than a record may be.
    #[error(
        "event {event_type:?} has a payload of {bytes} bytes, more than {max}: put the data elsewhere and publish a reference, or raise `Outbox::max_event_bytes` together with the topic's `max.message.bytes`"
    )]
    PayloadTooLarge {
        /// The event's type.
        event_type: String,
        /// How large the payload is.
        bytes: usize,
        /// How large it may be.
        max: usize,
    },
    /// The headers are larger than headers should be.
    #[error(
        "event {event_type:?} has {bytes} bytes of headers, more than {max}: put data into the payload"
    )]
    HeadersTooLarge {
        /// The event's type.
        event_type: String,
        /// How large names and values are together.
        bytes: usize,
        /// How large they may be.
        max: usize,
    },
    /// More than one statement can carry.
    #[error(
        "the events have {bytes} bytes together, more than {max} for one statement: publish them by several calls in the same transaction"
    )]
    BatchTooLarge {
        /// How large they are together.
        bytes: usize,
        /// How large they may be.
        max: usize,
    },
    /// One lock for each aggregate would fill the lock table that all sessions share.
    #[error(
        "the events are of {count} aggregates, more than the {max} that are locked by one call: publish them by an `Outbox` without `serialize_aggregates`, or by several transactions"
    )]
    TooManyAggregates {
        /// How many aggregates there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// The connection is in no transaction: the event would be committed by itself, and also if the change it belongs to fails.
    #[error(
        "the connection is in no transaction, so the event would exist whether or not the change it belongs to is committed, and nothing is done: begin a transaction (`let mut tx = pool.begin().await?`) and pass `&mut tx`; if the event belongs to no change, allow this with `Outbox::allow_autocommit`"
    )]
    NoTransaction,
    /// The table is not there.
    #[error(
        "the table {schema}.{table} does not exist in this database: call `tidings::migrate` at start, or run `tidings migrate`"
    )]
    MissingTable {
        /// The schema of the outbox.
        schema: String,
        /// `outbox`, or `scheduled` for an event that is due later.
        table: &'static str,
        /// What Postgres said.
        source: sqlx::Error,
    },
    /// Postgres refused the statement or is gone.
    #[error("the event cannot be inserted into the outbox")]
    Database(#[source] sqlx::Error),
}

impl PublishError {
    pub(super) fn invalid(event_type: &str, source: InvalidEvent) -> Self {
        Self::Invalid {
            event_type: event_type.to_owned(),
            source,
        }
    }

    pub(crate) fn envelope(event_type: &str, error: EnvelopeError) -> Self {
        match error {
            EnvelopeError::Codec(error) => Self::Codec(error),
            EnvelopeError::Invalid(source) => Self::invalid(event_type, source),
            EnvelopeError::Tombstone { .. } => unreachable!("nothing is decoded here"),
        }
    }

    pub(super) fn database(schema: &str, table: &'static str, source: sqlx::Error) -> Self {
        let source = cleaned(source);
        // undefined_table, and invalid_schema_name where the whole schema is missing
        let code = source.as_database_error().and_then(|error| error.code());
        if matches!(code.as_deref(), Some("42P01" | "3F000")) {
            return Self::MissingTable {
                schema: schema.to_owned(),
                table,
                source,
            };
        }
        Self::Database(source)
    }
}
