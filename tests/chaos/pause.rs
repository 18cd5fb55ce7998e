//! A moment in which no event is committed, and everything that was committed has been read.

use std::time::{Duration, Instant};

use sqlx::{Connection as _, PgConnection};

use super::Failure;
use super::committed::Committed;
use super::topic::{Record, Topics};
use super::transaction::execute;

/// Prepared transactions, and sessions that the server has not noticed to be dead, keep the table locked.
const BEGIN: &str = "begin; set local lock_timeout = '10s'";

/// A relay under faults needs this long to deliver the rest.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// Writers wait while this exists: each of their transactions locks a row of one table.
pub(crate) struct Pause(PgConnection);

impl Pause {
    /// Locks the writers' table. Returns `None` if the server or the lock cannot be had.
    pub(crate) async fn begin(url: &str, table: &str) -> Option<Self> {
        let mut session = PgConnection::connect(url).await.ok()?;
        execute(
            &mut session,
            &format!("{BEGIN}; lock table {table} in exclusive mode"),
        )
        .await
        .ok()?;
        Some(Self(session))
    }

    /// Lets the writers continue.
    pub(crate) async fn end(mut self) {
        // A session that has ended holds no lock.
        let _ = execute(&mut self.0, "rollback").await;
    }
}

/// Reads both topics from their beginning until every committed event has been read, here or earlier.
/// `None` if the relays do not deliver the rest in time.
///
/// # Errors
/// When Postgres or Kafka does not answer.
pub(crate) async fn read_all(
    url: &str,
    brokers: &str,
    earlier: &[Record],
) -> Result<Option<Vec<Record>>, Failure> {
    let mut wanted = Committed::read(url).await?.marks();
    for record in earlier {
        wanted.remove(&record.mark);
    }
    tokio::task::block_in_place(|| {
        let (topics, until) = (Topics::new(brokers)?, Instant::now() + DRAIN_LIMIT);
        let mut records = Vec::new();
        while !wanted.is_empty() && Instant::now() < until {
            let new = topics.read(Duration::from_millis(200))?;
            for record in &new {
                wanted.remove(&record.mark);
            }
            records.extend(new);
        }
        if !wanted.is_empty() {
            return Ok(None);
        }
        records.extend(topics.read_to_the_end()?);
        Ok(Some(records))
    })
}
