//! What can interrupt a relay, and what each interruption means. Decided here and nowhere else.

use super::source::RowError;
use crate::{
    kafka::TopicError,
    postgres::replication::{DecodeError, ReplicationError},
};

/// Why a relay ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// Only a person can put this right (no logical WAL, no permission, a lost slot). The text says what happened and what to do.
    #[error("{0}")]
    Refused(String),
    /// An option that cannot be used.
    #[error("{0}")]
    Options(String),
    /// The grace period was over before everything sent was acknowledged. Nothing is lost: what was in flight is sent again.
    #[error("{under_way} records were not acknowledged within the shutdown grace of {grace:?}; they will be sent again by the next run")]
    GraceExceeded {
        /// Records that Kafka had not acknowledged.
        under_way: u64,
        /// The grace that was given.
        grace: std::time::Duration,
    },
}

/// What interrupts a session: a connection, a row, the other side.
#[derive(Debug, thiserror::Error)]
pub(super) enum Interruption {
    #[error("{doing}")]
    Sql {
        doing: &'static str,
        #[source]
        source: sqlx::Error,
    },
    #[error("{doing}")]
    Replication {
        doing: &'static str,
        #[source]
        source: ReplicationError,
    },
    #[error(transparent)]
    Topic(#[from] TopicError),
    #[error("{0}")]
    Kafka(String),
    /// The brokers do not allow transactions as long as these.
    #[error("the brokers do not allow transactions of {} ms: a shorter time limit is tried", .0.as_millis())]
    TransactionTimeout(std::time::Duration),
    #[error("the broker refuses a batch for one of its records: {0}")]
    BatchRefused(String),
    #[error("the lease is lost: another relay of this name leads, or the database ended the session that held it")]
    LeaseLost,
    #[error("the publication is looked at again")]
    Publication,
    /// It does not pass on what is inserted into the outbox: somebody altered it.
    #[error("{0}")]
    PublicationUnfit(String),
    #[error("a command has changed over how many partitions a topic's keys are spread, or holds a topic back: begins anew")]
    TopicsChanged,
    #[error("this server is a standby: waiting for a primary")]
    Standby,
    #[error("{0}")]
    Refused(String),
}

/// What to do about an interruption.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It passes: try again, after a while.
    Transient,
    /// The producer can go no further: replace it, then read again what it left unacknowledged.
    ProducerBroken,
    /// It stays until a person acts; the text is for them.
    NeedsPerson(String),
}

impl Interruption {
    pub(super) fn sql(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Sql { doing, source }
    }

    pub(super) fn replication(doing: &'static str) -> impl FnOnce(ReplicationError) -> Self {
        move |source| Self::Replication { doing, source }
    }

    pub(super) fn meaning(&self) -> Meaning {
        if self.log_is_unusable() {
            return Meaning::Transient;
        }
        match self {
            // With a table to read instead nobody is needed: see `drive`.
            Self::Refused(text) | Self::PublicationUnfit(text) => Meaning::NeedsPerson(text.clone()),
            // What a producer knows of a topic's partitions it knows for long.
            Self::Kafka(_) | Self::TransactionTimeout(_) | Self::BatchRefused(_) | Self::TopicsChanged => Meaning::ProducerBroken,
            Self::Topic(_) | Self::LeaseLost | Self::Publication | Self::Standby => Meaning::Transient,
            Self::Sql { .. } | Self::Replication { .. } => match self.code().and_then(|code| remedy(&code)) {
                Some(remedy) => Meaning::NeedsPerson(format!("{}; {remedy}", self.full())),
                None => Meaning::Transient,
            },
        }
    }

    /// Whether the log that the slot keeps cannot be decoded any more: its publication was dropped (`undefined_object`), or what it needs is
    /// gone. The slot is of no use then; the table has what is missing.
    pub(super) fn log_is_unusable(&self) -> bool {
        matches!(self, Self::Replication { .. }) && matches!(self.code().as_deref(), Some("42704" | "55000" | "58P01"))
    }

    /// The SQLSTATE, if the server gave one.
    pub(super) fn code(&self) -> Option<String> {
        match self {
            Self::Sql { source, .. } => source.as_database_error().and_then(|error| error.code()).map(String::from),
            Self::Replication { source, .. } => source.code().map(String::from),
            _ => None,
        }
    }

    /// The error with all its sources in one line.
    pub(super) fn full(&self) -> String {
        let (mut text, mut source) = (self.to_string(), std::error::Error::source(self));
        while let Some(error) = source {
            let cause = error.to_string();
            if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
            source = error.source();
        }
        text
    }
}

/// What a person does about an SQLSTATE that does not pass by itself (PostgreSQL manual, appendix A); `None` if it may.
fn remedy(code: &str) -> Option<&'static str> {
    Some(match code {
        "28P01" | "28000" => {
            "check user and password of the database URL and the server's pg_hba.conf (a relay also needs a line for `replication`-capable connections to its database)"
        }
        "08P01" | "26000" | "42P05" => {
            "connect to Postgres itself: a pooler in between shares sessions or does not know the replication protocol (see docs/managed-postgres.md)"
        }
        "3D000" => "check the database's name in the database URL",
        "42501" => {
            "grant the role what it needs: ALTER ROLE … REPLICATION, SELECT on the outbox, SELECT/INSERT/UPDATE on the relay's tables, and let the table's owner create the publication (see `tidings check`)"
        }
        "42P01" | "3F000" | "42703" => "run `tidings migrate` for this database and schema",
        "53400" => {
            "raise max_replication_slots and max_wal_senders in postgresql.conf and restart the server, or drop a slot that nobody uses (select * from pg_replication_slots)"
        }
        "55000" => {
            "set wal_level = logical in postgresql.conf (ALTER SYSTEM SET wal_level = logical) and restart the server; if it is, see the server's log"
        }
        _ => return None,
    })
}

// === impl From ===

impl From<RowError> for Interruption {
    fn from(error: RowError) -> Self {
        Self::Refused(format!("{error}; the relay stops before this event, so that nothing is skipped"))
    }
}

impl From<DecodeError> for Interruption {
    fn from(error: DecodeError) -> Self {
        Self::Refused(format!("{error}; the relay stops before it, so that nothing is skipped: report this with the server's version"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: &str) -> Interruption {
        let source = ReplicationError::Server { code: code.into(), message: "no".into(), hint: None };
        Interruption::Replication { doing: "starting to stream", source }
    }

    #[test]
    fn what_passes_by_itself_is_told_apart_from_what_needs_a_person() {
        for code in ["57P01", "57P03", "08006", "53300", "55006", "40001"] {
            assert_eq!(server(code).meaning(), Meaning::Transient, "{code}");
        }
        for code in ["28P01", "42501", "42P01", "53400"] {
            assert!(
                matches!(server(code).meaning(), Meaning::NeedsPerson(text) if text.starts_with("starting to stream: Postgres answers")),
                "{code}"
            );
        }
        assert_eq!(Interruption::Kafka("fatal".into()).meaning(), Meaning::ProducerBroken);
        let closed = Interruption::Replication { doing: "reading", source: ReplicationError::Closed };
        assert_eq!(closed.meaning(), Meaning::Transient);
    }
}
