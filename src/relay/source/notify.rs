//! News of events by NOTIFY: a hint that saves waiting, never the truth. The table is looked at by a timer all the same.

use std::{sync::Arc, time::Duration};

use sqlx::postgres::PgListener;
use tokio::{sync::Notify, time::timeout};

use crate::{
    postgres::session,
    relay::{RelayOptions, SourceKind},
};

/// The channel on which publishers may say that there is something new.
const CHANNEL: &str = "tidings_outbox";

/// Before a listener is built anew: one that has failed is not used again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// How long a listener may take to be built.
const LISTEN_WITHIN: Duration = Duration::from_secs(20);

/// Tells of notifications as long as the returned value is held; silent unless the source is `poll`.
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
                    // The timeout only looks whether anybody is still interested.
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
