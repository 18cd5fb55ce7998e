//! Which events were handled: the row that makes an effect happen once.
//!
//! The row is inserted *before* the handler runs, by the transaction that will hold its effect. So a second member that handles the same event at this moment waits at
//! its own insert until the first commits, and then finds a duplicate; or until the first rolls back, and then handles it itself.
//!
//! The timeouts, the insert and `begin` are one message to the server: `insert …; begin`. Statements before a `begin` in one simple query belong to the transaction that it
//! opens, and if the insert fails there is no transaction at all, so a duplicate costs one message.

mod collision;
pub(crate) mod database_watch;
pub(crate) mod identity;
pub(crate) mod pipelined_tx;
mod sql_text;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgDatabaseError;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, PgTransaction};

use super::handler::HandlerError;
use crate::{
    kafka::Message,
    outbox::Outbox,
    postgres::{SchemaName, SchemaNameError},
};
use collision::{Collisions, Standing, standing_of};
use database_watch::Pulse;
use identity::Identity;
use pipelined_tx::{Begun, Form, Lease, Sessions, Statement};
use sql_text::{Arrays, Columns, Literal, Rows};

/// Where a subscriber remembers what it has handled. `PgPool` turns into one with the defaults.
///
/// ```
/// # fn example(pool: sqlx::PgPool) {
/// use std::time::Duration;
/// use tidings::subscriber::Inbox;
///
/// let inbox = Inbox::new(pool).keep(Duration::from_secs(30 * 86_400)).lock_timeout(Duration::from_secs(2));
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

/// The isolation level of the transactions that handlers get as [`Tx`](super::Tx).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// Each statement sees what was committed before it.
    ReadCommitted,
    /// All statements see what was committed before the first one.
    RepeatableRead,
    /// As if transactions ran one after the other.
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
    /// How long a handled event is remembered unless [`keep`](Self::keep) says otherwise: a day longer than Kafka keeps records by default.
    pub const KEEP_DEFAULT: Duration = Duration::from_secs(8 * 86_400);

    /// How long the statement that remembers waits for another member while somebody waits for its answer.
    const MOMENT: Duration = Duration::from_millis(50);

    /// How many rows retention deletes by one statement: short enough that nobody waits for it.
    const DELETE_ROWS: i64 = 5_000;

    /// The inbox in the schema `tidings` of this database.
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

    /// Uses the tables of another schema, as given to [`Migrations::schema`](crate::Migrations::schema).
    #[must_use]
    pub fn schema(mut self, name: impl AsRef<str>) -> Self {
        self.schema = name.as_ref().parse();
        self
    }

    /// Remembers handled events this long. Longer than the topic's retention and every retry: an event that comes again later is handled again.
    #[must_use]
    pub fn keep(mut self, time: Duration) -> Self {
        self.keep = time;
        self
    }

    /// How long a statement of the handler waits for a lock, and how long a duplicate waits for the member that handles it at this moment (`lock_timeout`); 10 s
    /// otherwise.
    #[must_use]
    pub fn lock_timeout(mut self, time: Duration) -> Self {
        self.lock_timeout = time;
        self
    }

    /// How long a handler may leave its transaction idle before the server ends it (`idle_in_transaction_session_timeout`); 60 s otherwise. It bounds how long a member
    /// that was cut off keeps others waiting.
    #[must_use]
    pub fn idle_timeout(mut self, time: Duration) -> Self {
        self.idle_timeout = time;
        self
    }

    /// The isolation level of the handlers' transactions. Defaults to the database's own (`default_transaction_isolation`).
    ///
    /// A transaction that cannot be serialized fails (SQLSTATE 40001) in one of its statements or at its commit. That is a failed attempt: the event is
    /// tried again as [`retry`](super::Subscriber::retry) says.
    #[must_use]
    pub fn isolation(mut self, level: Isolation) -> Self {
        self.isolation = Some(level);
        self
    }

    /// What is wrong with it, before anything runs.
    pub(crate) fn fault(&self) -> Option<String> {
        self.schema.as_ref().err().map(ToString::to_string)
    }

    /// The statements of this inbox for a consumer.
    pub(crate) fn open(&self, consumer: &str) -> Result<OpenInbox, SchemaNameError> {
        let schema = self.schema.clone()?;
        let idle = format!(
            "set local idle_in_transaction_session_timeout = {}",
            self.idle_timeout.as_millis()
        );
        let timeout = |time: Duration| format!("set local lock_timeout = {}", time.as_millis());
        // Zero would be for ever.
        let moment = if self.lock_timeout.is_zero() {
            Self::MOMENT
        } else {
            self.lock_timeout.min(Self::MOMENT)
        };
        // Before any query of its transaction, as Postgres asks for.
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
        let insert = format!(
            r#"insert into "{schema}".inbox (consumer, source, event_id, topic, fingerprint)"#
        );
        let one = Statement::new(
            "text, text, text, bigint",
            format!("{insert} values ({}, $1, $2, $3, $4)", Literal(consumer)),
        );
        let many = format!(
            "{insert} select {}, source, event_id, topic, fingerprint from unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) as e (source, event_id, topic, fingerprint)",
            Literal(consumer)
        );
        let many = Statement::new("text[], text[], text[], bigint[]", many);
        Ok(OpenInbox {
            patient,
            impatient,
            insert,
            one: one.name().to_owned(),
            many: many.name().to_owned(),
            sessions: Arc::new(Sessions::new(self.pool.clone(), vec![one, many])),
            stored: format!(
                r#"select source, event_id, topic, fingerprint, xmin = pg_catalog.pg_current_xact_id()::xid as is_new from "{schema}".inbox
                   where consumer = $1 and (source, event_id) in (select * from unnest($2::text[] collate "C", $3::text[] collate "C"))"#
            )
            .into(),
            delete: ["inbox", "inbox_collision"].map(|table| {
                format!(
                    r#"delete from "{schema}".{table} where ctid = any (array(
                         select ctid from "{schema}".{table} where consumer = $1 and handled_at < pg_catalog.now() - $2 * interval '1 second'
                         order by handled_at limit {}))"#,
                    Self::DELETE_ROWS
                )
                .into()
            }),
            collisions: Collisions::new(&schema),
            pulse: Arc::new(Pulse::new(self.pool.clone())),
            outbox: Outbox::new().schema(schema.as_str()),
            consumer: consumer.to_owned(),
            pool: self.pool.clone(),
            keep: self.keep,
            schema,
        })
    }
}

impl From<PgPool> for Inbox {
    fn from(pool: PgPool) -> Self {
        Self::new(pool)
    }
}

/// The timeouts, around the statement that remembers.
#[derive(Debug)]
struct Settings {
    before: String,
    after: String,
}

/// An inbox of one consumer.
#[derive(Debug)]
pub(crate) struct OpenInbox {
    pub(crate) pool: PgPool,
    pub(crate) schema: SchemaName,
    pub(crate) consumer: String,
    pub(crate) outbox: Outbox,
    pub(crate) keep: Duration,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) collisions: Collisions,
    pub(crate) pulse: Arc<Pulse>,
    patient: Settings,
    impatient: Settings,
    /// The insert, up to the rows.
    insert: String,
    /// The prepared insert of one event, and of many.
    one: String,
    many: String,
    /// What is stored of these sources and ids, and whether this transaction has stored it.
    stored: Arc<str>,
    delete: [Arc<str>; 2],
}

/// A row of a source and id.
struct Stored {
    source: String,
    event_id: String,
    topic: Option<String>,
    fingerprint: Option<i64>,
    /// This transaction has stored it.
    is_new: bool,
}

impl sqlx::FromRow<'_, sqlx::postgres::PgRow> for Stored {
    fn from_row(row: &sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
        use sqlx::Row as _;
        Ok(Self {
            source: row.try_get("source")?,
            event_id: row.try_get("event_id")?,
            topic: row.try_get("topic")?,
            fingerprint: row.try_get("fingerprint")?,
            is_new: row.try_get("is_new")?,
        })
    }
}

/// What came of remembering events.
pub(crate) enum Remembered {
    /// All of them were handled before.
    Duplicate,
    /// A transaction that holds the rows of these; `None` if that is all of them.
    New(PgTransaction<'static>, Lease, Option<Vec<Arc<Message>>>),
}

impl OpenInbox {
    /// Begins a transaction and remembers these events in it.
    ///
    /// # Cancel safety
    /// Dropping the future rolls back.
    pub(crate) async fn remember(
        &self,
        messages: &[Arc<Message>],
    ) -> Result<Remembered, HandlerError> {
        match messages {
            [message] => self.remember_one(message).await,
            _ => self.remember_many(messages).await,
        }
    }

    async fn remember_one(&self, message: &Message) -> Result<Remembered, HandlerError> {
        let identity = Identity::of(message, &self.consumer)?;
        loop {
            let begun = self.sessions.begin(|form| match form.prepared {
                true => self.message(
                    form,
                    format_args!("execute {} ({})", self.one, Columns(&identity)),
                ),
                false => self.message(
                    form,
                    format_args!(
                        "{} values {}",
                        self.insert,
                        Rows(&self.consumer, &[&identity])
                    ),
                ),
            });
            match begun.await {
                Ok(Begun {
                    transaction, lease, ..
                }) => return Ok(Remembered::New(transaction, lease, None)),
                Err(error) if self.knows(&error) => {}
                Err(error) => return Err(of_inbox(error)),
            }
            // `None`: retention has deleted the row in the meantime, so this insert comes first.
            if let Some(remembered) = self.remember_again(&identity).await? {
                return Ok(remembered);
            }
        }
    }

    async fn remember_many(&self, messages: &[Arc<Message>]) -> Result<Remembered, HandlerError> {
        let identities = messages
            .iter()
            .map(|message| Identity::of(message, &self.consumer))
            .collect::<Result<Vec<_>, _>>()?;
        // In one order everywhere, so that members with the same events wait for each other in turn.
        let mut ordered: Vec<_> = identities.iter().collect();
        ordered.sort_unstable();
        let begun = self.sessions.begin(|form| match form.prepared {
            true => self.message(
                form,
                format_args!("execute {} ({})", self.many, Arrays(&ordered)),
            ),
            false => self.message(
                form,
                format_args!("{} values {}", self.insert, Rows(&self.consumer, &ordered)),
            ),
        });
        match begun.await {
            Ok(Begun {
                transaction, lease, ..
            }) => return Ok(Remembered::New(transaction, lease, None)),
            Err(error) if self.knows(&error) => {}
            Err(error) => return Err(of_inbox(error)),
        }
        // To pass over what is there costs half as much again for each row, so it is asked for only when something is.
        let begun = self.sessions.begin(|form| {
            self.message(
                form,
                format_args!(
                    "{} values {} on conflict do nothing",
                    self.insert,
                    Rows(&self.consumer, &ordered)
                ),
            )
        });
        let Begun {
            mut transaction,
            lease,
            rows,
        } = begun.await.map_err(of_inbox)?;
        let Some(mut new) = self
            .new_of(&mut transaction, &identities)
            .await
            .map_err(of_inbox)?
        else {
            lease.roll_back(transaction).await;
            return Err(HandlerError::snooze(
                Duration::ZERO,
                "an event of the batch shares its id with another one",
            ));
        };
        if rows == 0 {
            lease.roll_back(transaction).await;
            return Ok(Remembered::Duplicate);
        }
        // The same event twice in one batch: the first counts.
        let kept = messages
            .iter()
            .zip(&identities)
            .filter(|(_, identity)| new.remove(identity))
            .map(|(message, _)| message.clone());
        Ok(Remembered::New(transaction, lease, Some(kept.collect())))
    }

    /// The message that remembers by this statement and begins.
    pub(crate) fn message(&self, form: Form, statement: fmt::Arguments<'_>) -> String {
        let Settings { before, after } = if form.waits {
            &self.patient
        } else {
            &self.impatient
        };
        format!("{before}{statement}{after}; begin")
    }

    /// Whether it is this inbox that knows an event already.
    fn knows(&self, error: &sqlx::Error) -> bool {
        let error = error
            .as_database_error()
            .and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
        error.is_some_and(|error| {
            (error.code(), error.constraint()) == ("23505", Some("inbox_pkey"))
                && error.schema() == Some(self.schema.as_str())
        })
    }

    /// Those that this transaction has stored, if all others are duplicates of what was stored before.
    async fn new_of<'i>(
        &self,
        transaction: &mut PgConnection,
        identities: &'i [Identity],
    ) -> Result<Option<HashSet<&'i Identity>>, sqlx::Error> {
        let (sources, ids): (Vec<&str>, Vec<&str>) = identities
            .iter()
            .map(|event| (event.source.as_str(), event.id.as_str()))
            .unzip();
        // Not prepared: in the next transaction a pooler may have another connection.
        let stored = sqlx::query_as(AssertSqlSafe(self.stored.clone()))
            .persistent(false)
            .bind(&self.consumer)
            .bind(sources)
            .bind(ids);
        let stored: Vec<Stored> = stored.fetch_all(transaction).await?;
        let mut new = HashSet::new();
        for Stored {
            source,
            event_id,
            topic,
            fingerprint,
            is_new,
        } in stored
        {
            let row = (topic, fingerprint);
            for event in identities
                .iter()
                .filter(|event| event.source == source && event.id == event_id)
            {
                if standing_of(&row, event) != Standing::Duplicate {
                    return Ok(None);
                }
                if is_new {
                    new.insert(event);
                }
            }
        }
        Ok(Some(new))
    }

    /// Forgets what is older than it is kept; how many rows.
    pub(crate) async fn forget_old(&self) -> Result<u64, sqlx::Error> {
        let mut forgotten = 0;
        for delete in &self.delete {
            loop {
                let delete = sqlx::query(AssertSqlSafe(delete.clone()))
                    .bind(&self.consumer)
                    .bind(self.keep.as_secs_f64());
                let deleted = delete.execute(&self.pool).await?.rows_affected();
                forgotten += deleted;
                if deleted < Inbox::DELETE_ROWS.cast_unsigned() {
                    break;
                }
            }
        }
        Ok(forgotten)
    }
}

/// What an error of remembering means. No handler ran, so it is never the event's fault.
pub(crate) fn of_inbox(error: sqlx::Error) -> HandlerError {
    let code = error
        .as_database_error()
        .and_then(|error| error.code())
        .map(|code| code.into_owned());
    match code.as_deref() {
        // Another member handles it at this moment: look again soon.
        Some("55P03" | "40001" | "40P01") => {
            HandlerError::snooze(Duration::from_millis(100), error)
        }
        _ => HandlerError::unavailable(error),
    }
}
