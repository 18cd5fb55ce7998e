//! A pause of all writers, during which every committed event can be read.

use std::time::{Duration, Instant};

use sqlx::{Connection as _, PgConnection};

use super::Failure;
use super::committed::Committed;
use super::topic::{Record, Topics};
use super::transaction::execute;

/// The lock needs a timeout: prepared transactions, and sessions whose end the server has not
/// noticed, keep the table locked.
const BEGIN: &str = "begin; set local lock_timeout = '10s'";

/// The time that a relay under faults may need to deliver the remaining events.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// A lock that makes all writers wait, because each of their transactions locks a row of the table.
pub(crate) struct Pause(PgConnection);

impl Pause {
    /// Locks the writers' table. Returns `None` if the server is unavailable or the lock times out.
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
        // A session that has ended holds no lock, so an error does not matter.
        let _ = execute(&mut self.0, "rollback").await;
    }
}

/// Reads both topics from their beginning until every committed event has been read, here or
/// earlier. Returns `None` if the relays do not deliver the rest in time.
///
/// # Errors
///
/// Returns an error if Postgres or Kafka does not respond.
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
