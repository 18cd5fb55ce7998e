//! Facts about a database that decide most conditions. One query returns them all.

use std::collections::BTreeMap;

use sqlx::{PgConnection, types::Json};

use crate::relay::RelayOptions;

/// Properties of the server, the relay's tables and the role.
#[derive(Clone, Debug, serde::Deserialize)]
pub(super) struct Facts {
    pub(super) version_number: i32,
    pub(super) version: String,
    pub(super) in_recovery: bool,
    pub(super) read_only: bool,
    pub(super) encoding: String,
    pub(super) wal_level: String,
    pub(super) slots_max: i32,
    pub(super) slots_used: i32,
    pub(super) senders_max: i32,
    pub(super) senders_used: i32,
    /// -1 means no limit.
    pub(super) slot_wal_keep_megabytes: Option<i64>,
    pub(super) role: String,
    pub(super) database: String,
    pub(super) superuser: bool,
    pub(super) replication: bool,
    pub(super) outbox_exists: bool,
    /// `r` is a plain table.
    pub(super) outbox_kind: Option<String>,
    /// `p` survives a crash.
    pub(super) outbox_persistence: Option<String>,
    pub(super) outbox_has_children: bool,
    /// Column names and their types.
    pub(super) outbox_columns: BTreeMap<String, String>,
    pub(super) outbox_is_indexed: bool,
    pub(super) outbox_disabled_triggers: Vec<String>,
    pub(super) outbox_sequence: Option<Sequence>,
    /// Tables with rows that row level security hides from the role.
    pub(super) hidden: Vec<String>,
    pub(super) schema_usage: Option<bool>,
    pub(super) outbox_schema_usage: Option<bool>,
    pub(super) outbox_select: Option<bool>,
    pub(super) relay_write: Option<bool>,
    pub(super) relay_topic_write: Option<bool>,
    pub(super) relay_secret_write: Option<bool>,
    /// The trigger that gives each row the id of its transaction is enabled.
    pub(super) own_transactions: bool,
    /// The server's clock, in milliseconds since the Unix epoch.
    pub(super) clock: i64,
    pub(super) parked_write: Option<bool>,
    pub(super) retention_write: Option<bool>,
    pub(super) scheduled_write: Option<bool>,
    pub(super) outbox_insert: Option<bool>,
    pub(super) outbox_delete: Option<bool>,
    pub(super) outbox_owned: Option<bool>,
    pub(super) database_create: bool,
    pub(super) relay_is_current: bool,
}

/// The sequence that numbers events.
#[derive(Clone, Debug, serde::Deserialize)]
pub(super) struct Sequence {
    pub(super) name: String,
    pub(super) cache: i64,
    pub(super) increment: i64,
    pub(super) cycles: bool,
}

impl Facts {
    /// Queries the server.
    ///
    /// # Errors
    ///
    /// Returns an error if the connection is lost, or if the server is not PostgreSQL.
    pub(super) async fn ask(
        options: &RelayOptions,
        session: &mut PgConnection,
    ) -> Result<Self, sqlx::Error> {
        const SQL: &str = concat!(
            "select to_json(facts) from (",
            include_str!("facts.sql"),
            ") facts"
        );
        let (schema, table) = options.table();
        let facts = sqlx::query_scalar(SQL)
            .bind(&options.schema)
            .bind(schema)
            .bind(table)
            .fetch_one(session);
        let Json(facts) = facts.await?;
        Ok(facts)
    }
}
