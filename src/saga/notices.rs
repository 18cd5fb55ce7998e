//! Notifications of sagas that have become due: started by code, decision by an operator, or
//! released from another saga's lock.
//!
//! A notification only saves the wait for the next poll. It is never required, since sessions
//! behind a connection pooler may not receive it.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgExecutor};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::postgres::SchemaName;
use crate::subscriber::Ground;

/// Postgres notification channel.
pub(super) const CHANNEL: &str = "tidings_saga";

/// Pause before a failed listener is replaced.
const PAUSE: Duration = Duration::from_secs(5);

/// Time limit for a new listener to connect.
const LISTEN_WITHIN: Duration = Duration::from_secs(20);

/// Returns the payload for the sagas of a name. It contains the schema, because a channel belongs
/// to the whole database and a database may have several schemas.
pub(super) fn notice(schema: &SchemaName, saga: &str) -> String {
    format!("{schema}/{saga}")
}

/// Wakes the timers of these sagas in all processes when the transaction commits.
///
/// # Errors
///
/// Returns the server's error.
pub(super) async fn notify(
    executor: impl PgExecutor<'_>,
    schema: &SchemaName,
    sagas: &[String],
) -> Result<(), sqlx::Error> {
    let notices: Vec<String> = sagas.iter().map(|saga| notice(schema, saga)).collect();
    let sql =
        format!("select pg_catalog.pg_notify('{CHANNEL}', n) from pg_catalog.unnest($1::text[]) n");
    sqlx::query(AssertSqlSafe(sql))
        .bind(notices)
        .execute(executor)
        .await
        .map(drop)
}

/// Forwards notifications to the timers of a subscriber until `stop` is cancelled. Holds one
/// session in addition to those of the inbox's pool.
pub(super) async fn listen(ground: Arc<Ground>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = pass_on(&ground) => {}
    }
}

async fn pass_on(ground: &Ground) {
    let options = ground
        .pool
        .connect_options()
        .as_ref()
        .clone()
        .application_name("tidings saga notices");
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(LISTEN_WITHIN)
        .connect_lazy_with(options);
    loop {
        if let Ok(Ok(mut listener)) = timeout(LISTEN_WITHIN, PgListener::connect_with(&pool)).await
            && matches!(
                timeout(LISTEN_WITHIN, listener.listen(CHANNEL)).await,
                Ok(Ok(()))
            )
        {
            // Commits before the `listen` sent no notification to this session, so every timer
            // checks once.
            let _ = ground.news.send(String::new());
            while let Ok(news) = listener.recv().await {
                let _ = ground.news.send(news.payload().to_owned());
            }
        }
        tracing::debug!(
            subscriber = ground.consumer,
            "saga notifications are unavailable; the timers poll twice a second"
        );
        tokio::time::sleep(PAUSE).await;
    }
}
