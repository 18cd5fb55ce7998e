//! Decisions of operators, read from the inbox's database: the pause of the subscriber, and marks
//! on its parked events.
//!
//! ```text
//! tidings subscribers pause ──▶ subscriber_control ──▶ every second ──▶ Pause (attempt/pause.rs)
//! tidings subscribers parked ──▶ subscriber_parked ──▶ every second ──▶ task of the partition
//! ```
//!
//! The first read precedes the first event and the first timer of a saga, so a member that starts
//! while its subscriber is paused starts paused. If the database cannot be read, the last decision
//! stays in effect.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Postgres};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    attempt::pause::{OperatorPause, Pause},
    inbox::OpenInbox,
    run::pause as start_pause,
    startup::database_check::silent,
    telemetry::log_limit::LogLimit,
};
use crate::{
    kafka::Partition,
    postgres::{errors::with_causes, session_fault},
};

/// Interval between two reads. A read costs two index lookups.
const EVERY: Duration = Duration::from_secs(1);

/// Time for which a read waits for a session of the pool. Handlers may use all of them, and an
/// operator pauses a subscriber then in particular. After this time, the read opens its own
/// session.
const POOL_PATIENCE: Duration = Duration::from_millis(300);

/// Time limit of a read, and of opening a session for it.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// Decisions of operators about one subscriber.
pub(crate) struct Control {
    inbox: Arc<OpenInbox>,
    pause: Arc<Pause>,
    statement: Arc<str>,
    marked_statement: Arc<str>,
    /// Partitions with marks on parked events, as of the last read that found one.
    marked: watch::Sender<Arc<HashSet<Partition>>>,
}

/// A session for one read.
enum Session {
    Pooled(PoolConnection<Postgres>),
    Own(PgConnection),
}

impl Control {
    pub(crate) fn new(inbox: &Arc<OpenInbox>, pause: &Arc<Pause>) -> Self {
        let schema = &inbox.schema;
        Self {
            inbox: inbox.clone(),
            pause: pause.clone(),
            statement: format!(
                r#"select paused_since, reason, paused_by from "{schema}".subscriber_control
                   where consumer = $1"#
            )
            .into(),
            marked_statement: format!(
                r#"select distinct topic, partition from "{schema}".subscriber_parked
                   where consumer = $1 and action is not null"#
            )
            .into(),
            marked: watch::Sender::default(),
        }
    }

    /// Returns the partitions with marks on parked events. The value changes with every read that
    /// finds a mark.
    pub(crate) fn marked(&self) -> watch::Receiver<Arc<HashSet<Partition>>> {
        let mut marked = self.marked.subscribe();
        marked.mark_changed();
        marked
    }

    /// Reads the first decision, and retries until the database responds. Returns `false` if the
    /// subscriber is shut down first.
    pub(crate) async fn is_known(&self, stop: &CancellationToken) -> bool {
        let reports = LogLimit::default();
        loop {
            let read = tokio::select! {
                () = stop.cancelled() => return false,
                read = self.read() => read,
            };
            match read {
                Ok(()) => return true,
                Err(error) => self.report(&error, &reports),
            }
            if !start_pause(stop).await {
                return false;
            }
        }
    }

    /// Reads the decisions until the subscriber stops.
    pub(crate) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let reports = LogLimit::default();
        let read_again = async {
            loop {
                tokio::time::sleep(EVERY).await;
                if let Err(error) = self.read().await {
                    self.report(&error, &reports);
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = read_again => {}
        }
    }

    async fn read(&self) -> Result<(), sqlx::Error> {
        let mut session = self.session().await?;
        let read = timeout(READ_WITHIN, self.read_in(session.connection())).await;
        let (pause, marked) = match read.unwrap_or_else(|_| Err(silent())) {
            Ok(read) => {
                session.end().await;
                read
            }
            Err(error) => {
                session.discard();
                return Err(error);
            }
        };
        self.pause.decided(pause);
        if !marked.is_empty() {
            // Always a change: another event of the same partition may be marked.
            self.marked.send_replace(Arc::new(marked));
        }
        Ok(())
    }

    async fn read_in(
        &self,
        session: &mut PgConnection,
    ) -> Result<(Option<OperatorPause>, HashSet<Partition>), sqlx::Error> {
        let pause: Option<(DateTime<Utc>, Option<String>, String)> =
            sqlx::query_as(AssertSqlSafe(self.statement.clone()))
                .persistent(false)
                .bind(&self.inbox.consumer)
                .fetch_optional(&mut *session)
                .await?;
        let marked: Vec<(String, i32)> =
            sqlx::query_as(AssertSqlSafe(self.marked_statement.clone()))
                .persistent(false)
                .bind(&self.inbox.consumer)
                .fetch_all(session)
                .await?;
        let partition = |(topic, number): (String, i32)| Partition {
            topic: topic.into(),
            number,
        };
        Ok((
            pause.map(|(since, reason, by)| OperatorPause { since, reason, by }),
            marked.into_iter().map(partition).collect(),
        ))
    }

    async fn session(&self) -> Result<Session, sqlx::Error> {
        let pool = &self.inbox.pool;
        if let Ok(pooled) = timeout(POOL_PATIENCE, pool.acquire()).await {
            return pooled.map(Session::Pooled);
        }
        let options = pool.connect_options();
        let own = timeout(READ_WITHIN, PgConnection::connect_with(&options)).await;
        own.unwrap_or_else(|_| Err(silent())).map(Session::Own)
    }

    fn report(&self, error: &sqlx::Error, reports: &LogLimit) {
        session_fault::close_after(error, &self.inbox.pool);
        if let Some(suppressed) = reports.admit(Instant::now()) {
            tracing::warn!(
                subscriber = self.inbox.consumer,
                error = with_causes(error),
                suppressed,
                "the decisions of operators cannot be read; the last one stays in effect"
            );
        }
    }
}

impl Session {
    fn connection(&mut self) -> &mut PgConnection {
        match self {
            Self::Pooled(session) => session,
            Self::Own(session) => session,
        }
    }

    /// Ends a session that has responded.
    async fn end(self) {
        if let Self::Own(session) = self {
            let _ = timeout(READ_WITHIN, session.close()).await;
        }
    }

    /// Ends a session in which a statement has failed or may still run.
    fn discard(self) {
        if let Self::Pooled(mut session) = self {
            session.close_on_drop();
        }
    }
}
