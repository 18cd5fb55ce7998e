//! Options of an inbox, and the statements that follow from them.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;

use super::{
    OpenInbox, Settings,
    collision::Collisions,
    database_watch::Pulse,
    pipelined_tx::{Statement, TxPipeline},
    sql_text::Literal,
};
use crate::{
    outbox::Outbox,
    postgres::{SchemaName, SchemaNameError},
};

/// Database where a subscriber records the events that it has handled. A `PgPool` converts into an
/// inbox with the default options.
///
/// ```
/// # fn example(pool: sqlx::PgPool) {
/// use std::time::Duration;
/// use tidings::subscriber::Inbox;
///
/// let inbox = Inbox::new(pool)
///     .keep(Duration::from_secs(30 * 86_400))
///     .lock_timeout(Duration::from_secs(2));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Inbox {
    pool: PgPool,
    schema: Result<SchemaName, SchemaNameError>,
    keep: Duration,
    lock_timeout: Duration,
    idle_timeout: Duration,
    isolation: Option<Isolation>,
}

/// Isolation level of the transactions that handlers receive as [`Tx`](crate::subscriber::Tx).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// Each statement sees the data that was committed before the statement began.
    ReadCommitted,
    /// All statements see the data that was committed before the first one began.
    RepeatableRead,
    /// Transactions take effect as if they ran one after the other.
    Serializable,
}

impl Isolation {
    fn sql(self) -> &'static str {
        match self {
            Self::ReadCommitted => "read committed",
            Self::RepeatableRead => "repeatable read",
            Self::Serializable => "serializable",
        }
    }
}

impl Inbox {
    /// Default time for which a handled event is recorded, see [`keep`](Self::keep): a day longer
    /// than Kafka keeps records by default.
    pub const KEEP_DEFAULT: Duration = Duration::from_secs(8 * 86_400);

    /// Lock timeout of an insert that is sent in the message of another transaction's commit. It is
    /// short because that transaction waits for the response.
    const MOMENT: Duration = Duration::from_millis(50);

    /// Maximum number of rows per delete statement of retention, so that the statement is short and
    /// blocks no other one for long.
    pub(super) const DELETE_ROWS: i64 = 5_000;

    /// Creates an inbox in the schema `tidings` of this database.
    pub fn new(pool: PgPool) -> Self {
        Self {
            pool,
            schema: Ok(SchemaName::default()),
            keep: Self::KEEP_DEFAULT,
            lock_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            isolation: None,
        }
    }

    /// Uses the tables in another schema, as passed to
    /// [`Migrations::schema`](crate::Migrations::schema).
    #[must_use]
    pub fn schema(mut self, name: impl AsRef<str>) -> Self {
        self.schema = name.as_ref().parse();
        self
    }

    /// Sets the time for which a handled event is recorded. Defaults to eight days
    /// ([`KEEP_DEFAULT`](Self::KEEP_DEFAULT)). It must be longer than the topic's retention and all
    /// retries, because an event that is delivered again later is handled again.
    #[must_use]
    pub fn keep(mut self, time: Duration) -> Self {
        self.keep = time;
        self
    }

    /// Sets the time that a statement of the handler waits for a lock (`lock_timeout`). It is also
    /// the time that a duplicate waits for the member that is handling the event. Defaults to 10 s.
    #[must_use]
    pub fn lock_timeout(mut self, time: Duration) -> Self {
        self.lock_timeout = time;
        self
    }

    /// Sets the time for which a handler may leave its transaction idle before the server ends it
    /// (`idle_in_transaction_session_timeout`). It limits the time for which a member that is cut
    /// off blocks the others. Defaults to 60 s.
    #[must_use]
    pub fn idle_timeout(mut self, time: Duration) -> Self {
        self.idle_timeout = time;
        self
    }

    /// Sets the isolation level of the handlers' transactions. Defaults to the level of the
    /// database (`default_transaction_isolation`).
    ///
    /// A transaction that cannot be serialized fails (SQLSTATE 40001) in one of its statements or
    /// at its commit. That is a failed attempt, and the event is retried as configured with
    /// [`retry`](crate::Subscriber::retry).
    #[must_use]
    pub fn isolation(mut self, level: Isolation) -> Self {
        self.isolation = Some(level);
        self
    }

    /// Returns the error in its settings, if there is one.
    pub(crate) fn fault(&self) -> Option<String> {
        self.schema.as_ref().err().map(ToString::to_string)
    }

    /// Builds the statements of this inbox for a consumer.
    pub(crate) fn open(&self, consumer: &str) -> Result<OpenInbox, SchemaNameError> {
        let schema = self.schema.clone()?;
        let (patient, impatient) = self.settings();
        let insert = format!(
            r#"insert into "{schema}".inbox (consumer, source, event_id, topic, fingerprint)"#
        );
        let one = Statement::new(
            "text, text, text, bigint",
            format!("{insert} values ({}, $1, $2, $3, $4)", Literal(consumer)),
        );
        let many = format!(
            "{insert} select {}, source, event_id, topic, fingerprint \
             from unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) \
             as e (source, event_id, topic, fingerprint)",
            Literal(consumer)
        );
        let many = Statement::new("text[], text[], text[], bigint[]", many);
        Ok(OpenInbox {
            patient,
            impatient,
            insert,
            one: one.name().to_owned(),
            many: many.name().to_owned(),
            sessions: Arc::new(TxPipeline::new(self.pool.clone(), vec![one, many])),
            stored: stored_statement(&schema).into(),
            delete: ["inbox", "inbox_collision"]
                .map(|table| delete_statement(&schema, table).into()),
            collisions: Collisions::new(&schema),
            pulse: Arc::new(Pulse::new(self.pool.clone())),
            outbox: Outbox::new().schema(schema.as_str()),
            consumer: consumer.to_owned(),
            pool: self.pool.clone(),
            keep: self.keep,
            schema,
        })
    }

    /// Returns the statements that set the timeouts, for the full lock timeout and for a short one.
    fn settings(&self) -> (Settings, Settings) {
        let idle = format!(
            "set local idle_in_transaction_session_timeout = {}",
            self.idle_timeout.as_millis()
        );
        let timeout = |time: Duration| format!("set local lock_timeout = {}", time.as_millis());
        // Zero would disable the timeout.
        let moment = if self.lock_timeout.is_zero() {
            Self::MOMENT
        } else {
            self.lock_timeout.min(Self::MOMENT)
        };
        // Postgres accepts it only before the first query of a transaction.
        let isolation = self
            .isolation
            .map(|level| format!("set transaction isolation level {}; ", level.sql()))
            .unwrap_or_default();
        let idle = isolation + &idle;
        let patient = Settings {
            before: format!("{idle}; {}; ", timeout(self.lock_timeout)),
            after: String::new(),
        };
        let impatient = Settings {
            before: format!("{idle}; {}; ", timeout(moment)),
            after: format!("; {}", timeout(self.lock_timeout)),
        };
        (patient, impatient)
    }
}

impl From<PgPool> for Inbox {
    fn from(pool: PgPool) -> Self {
        Self::new(pool)
    }
}

/// Returns the statement that selects the stored rows of sources and ids, and whether the current
/// transaction has inserted them.
fn stored_statement(schema: &SchemaName) -> String {
    format!(
        r#"select source, event_id, topic, fingerprint,
                          xmin = pg_catalog.pg_current_xact_id()::xid as is_new
                   from "{schema}".inbox
                   where consumer = $1 and (source, event_id) in
                         (select * from unnest($2::text[] collate "C", $3::text[] collate "C"))"#
    )
}

/// Returns the statement of retention for a table, which deletes a limited number of rows.
fn delete_statement(schema: &SchemaName, table: &str) -> String {
    format!(
        r#"delete from "{schema}".{table} where ctid = any (array(
                         select ctid from "{schema}".{table}
                         where consumer = $1
                           and handled_at < pg_catalog.now() - $2 * interval '1 second'
                         order by handled_at limit {}))"#,
        Inbox::DELETE_ROWS
    )
}
