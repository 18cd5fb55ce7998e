//! Notices of sagas that are due at once: started by code, decided by a person, or free of another one's lock. A notice saves the wait
//! for the next look, and is never needed: sessions behind a pooler may not get it.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgExecutor};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::postgres::SchemaName;
use crate::subscriber::Ground;

/// The channel of Postgres on which transactions notify.
pub(super) const CHANNEL: &str = "tidings_saga";

/// The pause before a listener is replaced that failed.
const PAUSE: Duration = Duration::from_secs(5);

/// The time that a new listener may take.
const LISTEN_WITHIN: Duration = Duration::from_secs(20);

/// The payload for the sagas of a name. A channel belongs to the database, and a database may have several schemas.
pub(super) fn notice(schema: &SchemaName, saga: &str) -> String {
    format!("{schema}/{saga}")
}

/// Wakes the timers of these sagas in all processes, once the transaction commits.
///
/// # Errors
/// What the server reports.
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

/// Passes notices on to the timers of a subscriber until it is told to stop. Holds one session beside those of the inbox's pool.
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
            // What was committed before it listened is found by a look.
            let _ = ground.news.send(String::new());
            while let Ok(news) = listener.recv().await {
                let _ = ground.news.send(news.payload().to_owned());
            }
        }
        tracing::debug!(
            subscriber = ground.consumer,
            "no notices of sagas: they are looked for twice a second"
        );
        tokio::time::sleep(PAUSE).await;
    }
}
