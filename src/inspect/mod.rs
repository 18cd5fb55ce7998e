//! Answers to an operator's questions: reads of Postgres and Kafka, one module per question.
//!
//! The command line and the console show the same answers, so nothing here formats a table or
//! prints. No read changes a row, an offset or a topic.
//!
//! | file | question |
//! |---|---|
//! | `relays` | which relays exist, and how far is each? |
//! | `advice` | what is wrong with a relay, and what is the remedy? |
//! | `sessions` | which processes lead, and which wait? |
//! | `topics` | which topics do relays publish to? |
//! | `aggregate` | which event or aggregate does an operator name? |
//! | `events` | which events are in the outbox, and what has become of each? |
//! | `path` | what happened to one event, from its insert to its effects? |
//! | `parked` | which events wait in a relay, and why? |
//! | `parked_by_subscribers` | which events wait in a subscriber, and why? |
//! | `json` | JSON with line breaks |
//! | `content` | what are the payload and the headers of an event? |
//! | `grants` | which rights does each role need in Postgres and Kafka? |
//! | `scheduled` | which events are published later? |
//! | `dead_letters` | which events did subscribers give up? |
//! | `sagas` | which sagas run, wait or have failed? |
//! | `subscriber_lag` | how far are subscribers behind their topics? |
//! | `proof` | do the topics contain exactly the committed events, in order? |
//! | `subscribers` | which subscribers run, what do they handle, what have they parked? |
//! | `units` | numbers, sizes and times as text |

pub(crate) mod advice;
pub(crate) mod aggregate;
pub(crate) mod content;
pub(crate) mod dead_letters;
pub(crate) mod events;
pub(crate) mod grants;
pub(crate) mod json;
pub(crate) mod parked;
pub(crate) mod parked_by_subscribers;
pub(crate) mod path;
pub(crate) mod proof;
pub(crate) mod relays;
pub(crate) mod sagas;
pub(crate) mod scheduled;
pub(crate) mod sessions;
pub(crate) mod subscriber_lag;
pub(crate) mod subscribers;
pub(crate) mod topics;
pub(crate) mod units;

use sqlx::PgPool;

/// A database with the schema of Tidings.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pub(crate) pool: PgPool,
    pub(crate) schema: String,
}

/// Error of a read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InspectError {
    /// The tables do not exist, or belong to an older version.
    #[error("the tables of Tidings are not in schema {schema}")]
    Missing { schema: String },
    /// The role lacks a privilege. The text is the server's.
    #[error("{text}")]
    Denied { text: String },
    /// The cluster does not respond or denies a request. The text is the client's.
    #[error("{text}")]
    Kafka { text: String },
    /// Another error of the database.
    #[error("cannot read the database")]
    Database(#[source] sqlx::Error),
}

impl InspectError {
    /// Returns an error of a read of Kafka.
    pub(crate) fn kafka(error: impl ToString) -> Self {
        Self::Kafka {
            text: error.to_string(),
        }
    }
}

impl Database {
    pub(crate) fn new(pool: PgPool, schema: impl Into<String>) -> Self {
        Self {
            pool,
            schema: schema.into(),
        }
    }

    /// Replaces `{schema}` in a statement.
    pub(crate) fn sql(&self, statement: &str) -> String {
        statement.replace("{schema}", &self.schema)
    }

    /// Classifies an error of a query on this schema.
    pub(crate) fn error(&self, error: sqlx::Error) -> InspectError {
        let code = error
            .as_database_error()
            .and_then(|error| error.code())
            .unwrap_or_default()
            .into_owned();
        match code.as_str() {
            // undefined_table, invalid_schema_name, undefined_column (tables of an older version)
            "42P01" | "3F000" | "42703" => InspectError::Missing {
                schema: self.schema.clone(),
            },
            // insufficient_privilege
            "42501" => InspectError::Denied {
                text: error
                    .as_database_error()
                    .map(|error| error.message().to_owned())
                    .unwrap_or_default(),
            },
            _ => InspectError::Database(error),
        }
    }
}
