//! Errors that end a relay, interruptions that end a session, and the reaction to each of them.
//!
//! The reaction is decided only here (`Interruption::meaning`).

mod sqlstate;

use super::row::native::RowError;
use crate::{
    kafka::TopicError,
    postgres::{
        DatabaseSettings, certificate,
        errors::{cleaned, with_causes},
        replication::{DecodeError, ReplicationError},
    },
};

/// An error that ends a relay.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// A fault that only an operator can correct (no logical WAL, a missing permission, a lost
    /// slot). The text names the cause and the remedy.
    #[error("{0}")]
    Refused(String),
    /// An option is invalid.
    #[error("{0}")]
    Options(String),
    /// The grace period ended before all sent events were durable in Kafka, although nothing had
    /// failed. A longer grace may help. No event is lost: the next run sends the events again that
    /// Kafka has not committed.
    #[error(
        "{under_way} events were sent and were not durable within the shutdown grace of {grace:?} \
         ({waiting}); the next run sends those again that Kafka has not committed"
    )]
    GraceExceeded {
        /// Sent events that were not durable.
        under_way: u64,
        /// The configured grace period.
        grace: std::time::Duration,
        /// The step that had not ended.
        waiting: String,
    },
    /// The relay was shut down, and its producer or its session failed before all sent events were
    /// durable. A longer grace does not help. No event is lost: the next run sends the events again
    /// that Kafka has not committed.
    #[error(
        "{under_way} events were sent and are not durable: {cause}; a longer shutdown grace does \
         not help; the next run replaces the producer, and sends those events again that Kafka has \
         not committed"
    )]
    NotDrained {
        /// Sent events that were not durable.
        under_way: u64,
        /// The failure that ended the drain.
        cause: String,
    },
}

/// An interruption of a session, caused by a connection, a row, Postgres or Kafka.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Interruption {
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
    /// The server is unreachable or refuses the connection. No statement was sent.
    #[error("connecting to Postgres at {address}")]
    Connecting {
        address: String,
        #[source]
        source: sqlx::Error,
    },
    /// The same for a replication connection.
    #[error("connecting to Postgres for replication")]
    ConnectingForReplication(#[source] ReplicationError),
    #[error(transparent)]
    Topic(#[from] TopicError),
    #[error("{0}")]
    Kafka(String),
    /// The brokers do not allow transactions with this time limit.
    #[error(
        "the brokers do not allow transactions of {} ms: the relay tries a shorter time limit",
        .0.as_millis()
    )]
    TransactionTimeout(std::time::Duration),
    #[error("the broker refuses a batch because of one of its records: {0}")]
    BatchRefused(String),
    #[error(
        "topic `{0}` refuses the timestamps of its records: its broker's clock differs from the \
         database's, or its message timestamp settings are narrow"
    )]
    Untimely(String),
    /// Every suspected record was either sent or identified as refused.
    #[error(
        "the records for which a batch was refused are found: the relay sends full batches again"
    )]
    Isolated,
    #[error(
        "the lease is lost: another relay of this name leads, or the database ended the session \
         that held it"
    )]
    LeaseLost,
    #[error("the session made no progress while {0}, and was dropped")]
    Hung(String),
    /// The database allows fewer connections than a relay needs.
    #[error(
        "only {had} of the {needed} connections to the database that a relay needs can be open at \
         once ({reason}): raise the pooler's pool_size, max_connections, or the CONNECTION LIMIT \
         of the role or the database; docs/operating.md lists them"
    )]
    Connections {
        had: usize,
        needed: usize,
        reason: String,
    },
    #[error("the publication is checked again")]
    Publication,
    /// The publication was altered and does not publish inserts into the outbox.
    #[error("{0}")]
    PublicationUnfit(String),
    #[error(
        "a command has changed the number of partitions for a topic's keys, or holds a topic back: \
         the session restarts"
    )]
    TopicsChanged,
    #[error("this server is a standby: waiting for a primary")]
    Standby,
    /// The relay waits for a condition that does not hold yet.
    #[error("{0}")]
    Waiting(String),
    #[error("{0}")]
    Refused(String),
    /// A panic of a client library on unexpected bytes, or a defect of Tidings.
    #[error("the session panicked: {0}")]
    Panicked(String),
}

/// Reaction to an interruption.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The cause passes by itself: retry after a delay.
    Transient,
    /// The producer cannot continue: replace it, then read its unacknowledged events again.
    ProducerBroken,
    /// The cause stays until an operator acts. The text is for the operator.
    NeedsPerson(String),
}

impl Interruption {
    pub(crate) fn sql(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Sql {
            doing,
            source: cleaned(source),
        }
    }

    pub(crate) fn connecting(database: &DatabaseSettings) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Connecting {
            address: database.address(),
            source: cleaned(source),
        }
    }

    pub(crate) fn replication(doing: &'static str) -> impl FnOnce(ReplicationError) -> Self {
        move |source| Self::Replication { doing, source }
    }

    pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Self {
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Self::Panicked(text.unwrap_or("no text").to_owned())
    }

    pub(crate) fn meaning(&self) -> Meaning {
        if self.log_is_unusable() {
            return Meaning::Transient;
        }
        match self {
            // If the table can be read instead of the log, no operator is needed: see
            // `source/selector.rs`.
            Self::Refused(text) | Self::PublicationUnfit(text) => {
                Meaning::NeedsPerson(text.clone())
            }
            // A producer caches a topic's partitions for a long time.
            Self::Kafka(_)
            | Self::TransactionTimeout(_)
            | Self::BatchRefused(_)
            | Self::Untimely(_)
            | Self::Isolated
            | Self::TopicsChanged => Meaning::ProducerBroken,
            Self::Topic(_)
            | Self::LeaseLost
            | Self::Publication
            | Self::Standby
            | Self::Waiting(_)
            | Self::Hung(_)
            | Self::Connections { .. }
            | Self::Panicked(_) => Meaning::Transient,
            Self::Connecting { .. }
            | Self::ConnectingForReplication(_)
            | Self::Sql { .. }
            | Self::Replication { .. } => match self.remedy() {
                Some(remedy) => Meaning::NeedsPerson(format!("{}; {remedy}", self.full())),
                None if self.is_refused_by_settings() => Meaning::NeedsPerson(self.full()),
                None => Meaning::Transient,
            },
        }
    }

    /// Returns `true` if the server or its certificate does not meet the requirements of the
    /// database URL, and only an operator can change that.
    fn is_refused_by_settings(&self) -> bool {
        matches!(
            self,
            Self::ConnectingForReplication(ReplicationError::Auth(_))
        ) || certificate::refusal(self).is_some_and(|refusal| !refusal.passes)
    }

    /// Returns the remedy for an SQLSTATE that does not pass by itself. The same code has different
    /// meanings while a connection is opened and in a session.
    fn remedy(&self) -> Option<&'static str> {
        let (code, message) = self.server_error()?;
        if self.is_of_connecting() {
            sqlstate::remedy_of_connecting(&code, &message)
        } else {
            sqlstate::remedy(&code, &message)
        }
    }

    /// Returns `true` if the server refused a connection or was unreachable.
    pub(crate) fn is_of_connecting(&self) -> bool {
        matches!(
            self,
            Self::Connecting { .. } | Self::ConnectingForReplication(_)
        )
    }

    /// Returns `true` if the cause may be a temporary effect of a change of access: a rotated
    /// password, or a database that is being renamed or recreated.
    pub(crate) fn may_be_a_change_of_access(&self) -> bool {
        self.is_of_connecting()
            && matches!(self.code().as_deref(), Some("28P01" | "28000" | "3D000"))
    }

    /// Returns the error with all its sources, and a remedy or a hint if one is known.
    pub(crate) fn explained(&self) -> String {
        let hint = self
            .server_error()
            .and_then(|(code, _)| sqlstate::hint(&code, self.is_of_connecting()));
        let hint = self.remedy().or(hint);
        hint.map_or_else(|| self.full(), |hint| format!("{}; {hint}", self.full()))
    }

    /// Returns `true` if the slot's log can no longer be decoded: its publication was dropped
    /// (`undefined_object`), or required log is missing. The slot is useless then, and the missing
    /// events are read from the table.
    pub(crate) fn log_is_unusable(&self) -> bool {
        matches!(self, Self::Replication { .. })
            && matches!(self.code().as_deref(), Some("42704" | "55000" | "58P01"))
    }

    /// Returns `true` if the server accepted a replication connection and did not stream.
    pub(crate) fn log_is_silent(&self) -> bool {
        matches!(
            self,
            Self::Replication {
                source: ReplicationError::Unanswered(_),
                ..
            }
        )
    }

    /// Returns `true` if the database did not answer a statement in time.
    pub(crate) fn is_timed_out(&self) -> bool {
        let Self::Sql {
            source: sqlx::Error::Io(error),
            ..
        } = self
        else {
            return false;
        };
        error.kind() == std::io::ErrorKind::TimedOut
    }

    /// Returns the SQLSTATE if the server sent one.
    pub(crate) fn code(&self) -> Option<String> {
        self.server_error().map(|(code, _)| code)
    }

    /// Returns the SQLSTATE and the message if the server sent them.
    fn server_error(&self) -> Option<(String, String)> {
        match self {
            Self::Connecting { source, .. } | Self::Sql { source, .. } => {
                let error = source.as_database_error()?;
                Some((error.code()?.into_owned(), error.message().to_owned()))
            }
            Self::ConnectingForReplication(source) | Self::Replication { source, .. } => {
                Some((source.code()?.to_owned(), source.to_string()))
            }
            _ => None,
        }
    }

    /// Returns the error with all its sources in one line.
    pub(crate) fn full(&self) -> String {
        let text = with_causes(self);
        match certificate::refusal(self) {
            Some(refusal) => format!("{text}; {}", refusal.text),
            None => text,
        }
    }
}

// === impl From ===

impl From<RowError> for Interruption {
    fn from(error: RowError) -> Self {
        match error {
            RowError::Decode(error) => error.into(),
            error => Self::Refused(format!(
                "{error}; the relay stops before this event, so that nothing is skipped"
            )),
        }
    }
}

impl From<DecodeError> for Interruption {
    /// Converts bytes that are not a message of the protocol. They carry no information about the
    /// events: the position stays, and a new connection reads the same events again.
    fn from(error: DecodeError) -> Self {
        Self::Replication {
            doing: "decoding the stream",
            source: ReplicationError::Protocol(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: &str) -> Interruption {
        let source = ReplicationError::Server {
            code: code.into(),
            message: "no".into(),
            hint: None,
        };
        Interruption::Replication {
            doing: "starting to stream",
            source,
        }
    }

    fn refused(code: &str, message: &str) -> Interruption {
        Interruption::ConnectingForReplication(ReplicationError::Server {
            code: code.into(),
            message: message.into(),
            hint: None,
        })
    }

    /// Bytes that break the protocol end the connection rather than the process.
    #[test]
    fn bytes_that_are_no_message_are_read_again_by_the_next_session() {
        let decode = crate::postgres::replication::decode(b"I").expect_err("too short");
        for interruption in [
            Interruption::from(decode.clone()),
            Interruption::from(RowError::Decode(decode)),
        ] {
            assert_eq!(interruption.meaning(), Meaning::Transient);
            let text = interruption.full();
            assert!(
                text.starts_with("decoding the stream: unexpected answer from Postgres: malformed"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_passes_by_itself_is_told_apart_from_what_needs_a_person() {
        for code in [
            "57P01", "57P03", "08006", "53300", "55006", "40001", "25006",
        ] {
            assert_eq!(server(code).meaning(), Meaning::Transient, "{code}");
        }
        for code in ["42501", "42P01", "53400"] {
            assert!(
                matches!(
                    server(code).meaning(),
                    Meaning::NeedsPerson(text)
                        if text.starts_with("starting to stream: Postgres answers")
                ),
                "{code}"
            );
        }
        assert_eq!(
            Interruption::Kafka("fatal".into()).meaning(),
            Meaning::ProducerBroken
        );
        let closed = Interruption::Replication {
            doing: "reading",
            source: ReplicationError::Closed,
        };
        assert_eq!(closed.meaning(), Meaning::Transient);
    }

    #[test]
    fn a_database_that_takes_no_connections_is_waited_for_and_its_slot_is_kept() {
        let refused = refused(
            "55000",
            "database \"shop\" is not currently accepting connections",
        );
        assert_eq!(refused.meaning(), Meaning::Transient);
        assert!(!refused.log_is_unusable());
        assert!(
            refused.explained().contains("ALLOW_CONNECTIONS"),
            "{}",
            refused.explained()
        );
        assert!(server("55000").log_is_unusable());
    }

    #[test]
    fn a_refused_connection_needs_a_person_only_if_waiting_cannot_help() {
        for code in [
            "55000", "53300", "57P03", "57P01", "57P02", "25006", "08P01", "58P01", "XX000",
        ] {
            let refused = refused(code, "no");
            assert_eq!(refused.meaning(), Meaning::Transient, "{code}");
            assert!(
                !refused.log_is_unusable() && !refused.may_be_a_change_of_access(),
                "{code}"
            );
        }
        for code in ["28P01", "28000", "3D000", "42501"] {
            let refused = refused(code, "no");
            assert!(
                matches!(refused.meaning(), Meaning::NeedsPerson(_)),
                "{code}"
            );
            assert_eq!(
                refused.may_be_a_change_of_access(),
                code != "42501",
                "{code}"
            );
        }
        let pooler = refused("08P01", "unsupported startup parameter: replication");
        assert!(matches!(
            pooler.meaning(),
            Meaning::NeedsPerson(text) if text.contains("docs/managed-postgres.md")
        ));
    }
}
