//! The inbox: stored identities of handled events, which make an effect happen once.
//!
//! The row of an event is inserted *before* the handler runs, in the transaction that will contain
//! the handler's effect. If a second member handles the same event concurrently, its insert waits
//! for the first transaction. If the first commits, the second member finds a duplicate. If the
//! first rolls back, the second member handles the event.
//!
//! The timeouts, the insert and `begin` are sent as one message: `insert …; begin`. In a simple
//! query, the statements before a `begin` belong to the transaction that it opens. If the insert
//! fails, no transaction is open, so a duplicate costs one message.

mod collision;
pub(crate) mod database_watch;
pub(crate) mod identity;
mod options;
pub(crate) mod pipelined_tx;
mod sql_text;
mod statements;

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
    postgres::{SchemaName, errors::cleaned},
};
use collision::{Collisions, Standing, standing_of};
use database_watch::Pulse;
use identity::{Identity, Unstorable};
pub use options::{Inbox, Isolation};
use pipelined_tx::{BegunTx, Form, TxLease, TxPipeline};
use sql_text::{Arrays, Columns, Rows};
pub use statements::{InboxRecord, InboxStatements};

/// The statements that set the timeouts, before and after the insert.
#[derive(Debug)]
struct Settings {
    before: String,
    after: String,
}

/// The inbox of one consumer.
#[derive(Debug)]
pub(crate) struct OpenInbox {
    pub(crate) pool: PgPool,
    pub(crate) schema: SchemaName,
    pub(crate) consumer: String,
    pub(crate) outbox: Outbox,
    pub(crate) keep: Duration,
    pub(crate) sessions: Arc<TxPipeline>,
    pub(crate) collisions: Collisions,
    pub(crate) pulse: Arc<Pulse>,
    patient: Settings,
    impatient: Settings,
    /// The insert statement up to the rows.
    insert: String,
    /// Names of the prepared insert statements for one event and for several.
    one: String,
    many: String,
    /// Selects the stored rows of sources and ids, and whether the current transaction has inserted
    /// them.
    stored: Arc<str>,
    delete: [Arc<str>; 2],
}

/// A stored row.
struct Stored {
    source: String,
    event_id: String,
    topic: Option<String>,
    fingerprint: Option<i64>,
    /// True if the current transaction has inserted the row.
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

/// Outcome of recording events.
pub(crate) enum Remembered {
    /// All events were handled before.
    Duplicate,
    /// A transaction that has recorded these events. `None` means all of them.
    New(PgTransaction<'static>, TxLease, Option<Vec<Arc<Message>>>),
}

impl OpenInbox {
    /// Begins a transaction and records these events in it.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the transaction is rolled back.
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
                Ok(BegunTx {
                    transaction, lease, ..
                }) => return Ok(Remembered::New(transaction, lease, None)),
                Err(error) if self.knows(&error) => {}
                Err(error) => return Err(of_inbox(error)),
            }
            // `None` means that retention has deleted the row in the meantime, so the insert is
            // repeated.
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
        // All members use the same order, so that members with the same events wait for each other
        // and do not deadlock.
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
            Ok(BegunTx {
                transaction, lease, ..
            }) => return Ok(Remembered::New(transaction, lease, None)),
            Err(error) if self.knows(&error) => {}
            Err(error) => return Err(of_inbox(error)),
        }
        // `on conflict do nothing` costs half as much again per row, so it is used only after a
        // conflict.
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
        let BegunTx {
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
        // If a batch contains the same event twice, only the first is handled.
        let kept = messages
            .iter()
            .zip(&identities)
            .filter(|(_, identity)| new.remove(identity))
            .map(|(message, _)| message.clone());
        Ok(Remembered::New(transaction, lease, Some(kept.collect())))
    }

    /// Returns the message that records events with this statement and begins a transaction.
    pub(crate) fn message(&self, form: Form, statement: fmt::Arguments<'_>) -> String {
        let Settings { before, after } = if form.waits {
            &self.patient
        } else {
            &self.impatient
        };
        format!("{before}{statement}{after}; begin")
    }

    /// Returns `true` if the error means that this inbox has recorded an event already.
    fn knows(&self, error: &sqlx::Error) -> bool {
        let error = error
            .as_database_error()
            .and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
        error.is_some_and(|error| {
            (error.code(), error.constraint()) == ("23505", Some("inbox_pkey"))
                && error.schema() == Some(self.schema.as_str())
        })
    }

    /// Returns the events that this transaction has recorded. Returns `None` if a stored row with
    /// the source and id of an event belongs to another event.
    async fn new_of<'i>(
        &self,
        transaction: &mut PgConnection,
        identities: &'i [Identity],
    ) -> Result<Option<HashSet<&'i Identity>>, sqlx::Error> {
        let (sources, ids): (Vec<&str>, Vec<&str>) = identities
            .iter()
            .map(|event| (event.source.as_str(), event.id.as_str()))
            .unzip();
        // Not prepared, because a pooler may use another connection for the next transaction.
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

    /// Deletes rows that are older than the configured time. Returns the number of deleted rows.
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

/// Converts an error of recording events. No handler ran, so the event itself is the cause only if
/// the database cannot store its identity.
pub(crate) fn of_inbox(error: sqlx::Error) -> HandlerError {
    let code = error
        .as_database_error()
        .and_then(|error| error.code())
        .map(|code| code.into_owned());
    match code.as_deref() {
        // Another member is handling the event, so it is tried again soon.
        Some("55P03" | "40001" | "40P01") => {
            HandlerError::snooze(Duration::from_millis(100), error)
        }
        // A value that the column or its encoding does not have.
        Some(code) if code.starts_with("22") || code == "23514" => {
            HandlerError::dead_letter(Unstorable::Database(cleaned(error)))
        }
        _ => HandlerError::unavailable(error),
    }
}
