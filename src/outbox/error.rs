//! Errors of publishing an event.

use std::error::Error;

use crate::event::{CodecError, EnvelopeError, InvalidEvent};
use crate::postgres::SchemaNameError;

/// Reason why an event is not published.
///
/// Only [`Database`](Self::Database) and [`MissingTable`](Self::MissingTable) come from Postgres
/// and leave the caller's transaction aborted. All other errors are found before anything is
/// written, and the transaction can continue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The outbox was configured with an invalid schema name.
    #[error(transparent)]
    Schema(#[from] SchemaNameError),
    /// The event has no representation in its format.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The event violates a rule, so that it could never be delivered.
    #[error("event {event_type:?} can never be delivered: {source}")]
    Invalid {
        /// The event type.
        event_type: String,
        /// The violated rule.
        source: InvalidEvent,
    },
    /// The payload exceeds the limit of the outbox.
    #[error(
        "event {event_type:?} has a payload of {bytes} bytes, more than {max}: put the data \
         elsewhere and publish a reference, or raise `Outbox::max_event_bytes` together with the \
         topic's `max.message.bytes`"
    )]
    PayloadTooLarge {
        /// The event type.
        event_type: String,
        /// The size of the payload in bytes.
        bytes: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The headers exceed the limit.
    #[error(
        "event {event_type:?} has {bytes} bytes of headers, more than {max}: put data into the \
         payload"
    )]
    HeadersTooLarge {
        /// The event type.
        event_type: String,
        /// The size of all names and values in bytes.
        bytes: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The events exceed the limit of one statement.
    #[error(
        "the events have {bytes} bytes together, more than {max} for one statement: publish them \
         in several calls in the same transaction"
    )]
    BatchTooLarge {
        /// The size of all events in bytes.
        bytes: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// One lock per aggregate would fill the lock table that all sessions share.
    #[error(
        "the events belong to {count} aggregates, more than the {max} that one call can lock: \
         publish them with an `Outbox` without `serialize_aggregates`, or in several transactions"
    )]
    TooManyAggregates {
        /// The number of aggregates.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// The connection is not in a transaction. The event would be committed by itself, even if the
    /// change that it belongs to fails.
    #[error(
        "the connection is in no transaction, so nothing was done: the event would exist even if \
         the change that it belongs to is rolled back; begin a transaction (`let mut tx = \
         pool.begin().await?`) and pass `&mut tx`, or allow this with `Outbox::allow_autocommit` \
         if the event belongs to no change"
    )]
    NoTransaction,
    /// The table does not exist.
    #[error(
        "the table {table} does not exist in this database: call `tidings::migrate` at start, or \
         run `tidings migrate`"
    )]
    MissingTable {
        /// The name of the table with its schema: `tidings.outbox`, or `tidings.scheduled` for a
        /// scheduled event.
        table: String,
        /// The error of the driver.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Postgres refused the statement, or the connection was lost.
    #[error("the event cannot be inserted into the outbox")]
    Database {
        /// SQLSTATE of the server's error, if the driver knows it. A transaction that failed with
        /// `40001` or `40P01` can be repeated.
        sqlstate: Option<String>,
        /// The error of the driver, e.g. a `sqlx::Error`.
        source: Box<dyn Error + Send + Sync>,
    },
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

    pub(super) fn database(
        table: &str,
        sqlstate: Option<String>,
        source: Box<dyn Error + Send + Sync>,
    ) -> Self {
        // undefined_table, or invalid_schema_name if the whole schema is missing.
        match sqlstate.as_deref() {
            Some("42P01" | "3F000") => Self::MissingTable {
                table: table.to_owned(),
                source,
            },
            _ => Self::Database { sqlstate, source },
        }
    }

    /// Returns sqlx's error if a statement has failed.
    #[cfg(feature = "subscriber")]
    pub(crate) fn as_sqlx(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Database { source, .. } | Self::MissingTable { source, .. } => {
                source.downcast_ref()
            }
            _ => None,
        }
    }
}

#[cfg(feature = "sqlx")]
impl From<sqlx::Error> for PublishError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database {
            sqlstate: error
                .as_database_error()
                .and_then(|error| error.code())
                .map(Into::into),
            source: crate::postgres::errors::cleaned(error).into(),
        }
    }
}
