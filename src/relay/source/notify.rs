//! Notifications of new events by NOTIFY. They only shorten the wait: the table is also read by a
//! timer.

use std::{sync::Arc, time::Duration};

use sqlx::postgres::PgListener;
use tokio::{sync::Notify, time::timeout};

use crate::{
    postgres::session,
    relay::{RelayOptions, SourceKind},
};

/// The channel for announcements of new events by publishers.
const CHANNEL: &str = "tidings_outbox";

/// Pause before a failed listener is replaced. A failed listener is not used again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Time limit for starting a listener.
const LISTEN_WITHIN: Duration = Duration::from_secs(20);

/// Starts to listen for notifications. Listens while the returned value exists, and only if the
/// source is `poll`.
#[expect(
    clippy::disallowed_methods,
    reason = "ends once the returned value is dropped"
)]
pub(crate) fn listen(options: &RelayOptions) -> Arc<Notify> {
    let news = Arc::new(Notify::new());
    if options.source == SourceKind::Poll {
        let (weak, database) = (Arc::downgrade(&news), options.database.clone());
        tokio::spawn(async move {
            let pool = session::pool(&database, "relay news");
            while weak.strong_count() > 0 {
                if let Ok(Ok(mut listener)) =
                    timeout(LISTEN_WITHIN, PgListener::connect_with(&pool)).await
                    && matches!(
                        timeout(LISTEN_WITHIN, listener.listen(CHANNEL)).await,
                        Ok(Ok(()))
                    )
                {
                    // The timeout only serves to check that the returned value still exists.
                    while let Some(news) = weak.upgrade() {
                        match timeout(AGAIN_AFTER, listener.recv()).await {
                            Ok(Ok(_)) => news.notify_one(),
                            Ok(Err(_)) => break,
                            Err(_) => {}
                        }
                    }
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        });
    }
    news
}
