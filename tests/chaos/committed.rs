//! Committed events, read from Postgres once all writers have stopped.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::Failure;

/// The tables that writers change in addition to the outbox. `history` has one row for each version
/// of an account, with the mark of its event.
pub(crate) const TABLES: &str = "
    create table account (id text primary key, version bigint not null default 0);
    create table history (account text not null, version bigint not null, mark uuid primary key, \
        unique (account, version));
";

/// A committed event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) account: Arc<str>,
    pub(crate) version: i64,
}

/// All committed events, by mark.
#[derive(Clone, Debug, Default)]
pub(crate) struct Committed {
    pub(crate) events: HashMap<Uuid, Event>,
}

impl Committed {
    /// Reads the history and verifies that it has no gap: the versions of each account must be
    /// consecutive.
    ///
    /// # Errors
    ///
    /// Returns an error if Postgres does not respond, or if the history has a gap. A gap is a fault
    /// of the test or of Postgres.
    pub(crate) async fn read(url: &str) -> Result<Self, Failure> {
        let mut session = PgConnection::connect(url).await?;
        let gap = "select id from account full join (select account, max(version), count(*) \
                   from history group by 1) h on h.account = id
                   where version <> coalesce(max, 0) or version <> coalesce(count, 0) limit 1";
        if let Some(account) = sqlx::query_scalar::<_, Option<String>>(gap)
            .fetch_optional(&mut session)
            .await?
        {
            return Err(format!("the history of account {account:?} has a gap").into());
        }
        let rows: Vec<(String, i64, Uuid)> =
            sqlx::query_as("select account, version, mark from history order by account, version")
                .fetch_all(&mut session)
                .await?;
        let mut committed = Self::default();
        let mut last: Arc<str> = "".into();
        for (account, version, mark) in rows {
            if *last != *account {
                last = account.into();
            }
            committed.events.insert(
                mark,
                Event {
                    account: Arc::clone(&last),
                    version,
                },
            );
        }
        Ok(committed)
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    /// Returns the marks of all events that must be delivered.
    pub(crate) fn marks(&self) -> HashSet<Uuid> {
        self.events.keys().copied().collect()
    }
}
