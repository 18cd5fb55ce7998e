//! Least privilege: the rights that each role needs in Postgres and Kafka, for the names of one
//! deployment.
//!
//! Nothing is read from a server, because the rights are granted before a role connects. The tests
//! in `tests/it/grants/` take the rights from here, and show that each suffices and is needed.

mod kafka;
mod postgres;

use serde::Serialize;

pub(crate) use self::kafka::{AclGrant, AclPattern};
pub(crate) use self::postgres::{SqlGrant, identifier};

/// The grantee: a role of Postgres and a principal of Kafka.
#[derive(Clone, Debug)]
pub(crate) struct Grantee {
    /// The role, unquoted.
    pub(crate) role: String,
    /// The principal, for example `User:app`.
    pub(crate) principal: String,
}

/// The database and the schema of Tidings in it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The database, unquoted.
    pub(crate) database: String,
    /// The schema, which never needs quotes.
    pub(crate) schema: String,
}

/// Work of a role, with the settings that decide about its rights.
#[derive(Clone, Debug)]
pub(crate) enum Duty {
    /// Owns the tables and runs `tidings migrate`.
    Migrator,
    /// Publishes events in its own transactions.
    Publisher {
        /// Publishes and cancels scheduled events.
        schedules: bool,
        /// Calls `tidings::migrate` at its start, on tables of another owner.
        migrates: bool,
    },
    /// Runs `tidings relay`.
    Relay(RelayDuty),
    /// Handles events.
    Subscriber {
        group: String,
        topics: Vec<String>,
        /// Has an inbox in the database.
        has_inbox: bool,
        /// Sends failed events to retry topics.
        has_retry_topics: bool,
        /// Runs sagas.
        has_sagas: bool,
    },
    /// Reads the state, and decides about parked events, dead letters, subscribers and sagas.
    Operator {
        topics: Vec<String>,
        groups: Vec<String>,
    },
}

/// Settings of a relay that decide about its rights.
#[derive(Clone, Debug)]
pub(crate) struct RelayDuty {
    pub(crate) name: String,
    /// Reads the write-ahead log, always or when it can.
    pub(crate) streams: bool,
    pub(crate) is_exactly_once: bool,
    /// Deletes published events.
    pub(crate) has_retention: bool,
    /// Schema and name of a Debezium table, instead of Tidings' own outbox.
    pub(crate) debezium: Option<(String, String)>,
    /// The publication, unquoted.
    pub(crate) publication: String,
    /// Topics of events. A name that ends with `*` is a prefix.
    pub(crate) topics: Vec<String>,
    /// Topics of dead letters, with the policy `dead-letter`.
    pub(crate) dead_letter_topics: Vec<String>,
    pub(crate) creates_topics: bool,
}

/// All rights of a role.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Grants {
    pub(crate) role: String,
    pub(crate) principal: String,
    /// Statements that create the role, if it does not exist.
    pub(crate) create_role: Vec<String>,
    /// Privileges in the database.
    pub(crate) postgres: Vec<SqlGrant>,
    /// Statements that create objects that the role cannot create itself.
    pub(crate) objects: Vec<String>,
    /// Access-control entries of the cluster.
    pub(crate) kafka: Vec<AclGrant>,
}

impl Grants {
    /// Returns the rights of a role.
    pub(crate) fn new(grantee: Grantee, place: &Place, duty: &Duty) -> Self {
        Self {
            create_role: vec![postgres::create_role(&grantee.role, duty)],
            postgres: postgres::grants(&grantee.role, place, duty),
            objects: postgres::objects(place, duty),
            kafka: kafka::grants(&grantee.principal, duty),
            role: grantee.role,
            principal: grantee.principal,
        }
    }
}
