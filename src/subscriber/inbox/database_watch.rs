//! Detection of a database that does not respond, for attempts that time out.
//!
//! A layer that limits the time of attempts returns the same error for a slow handler and for a
//! database that hangs. The second case is an outage and must cost no event an attempt. Therefore,
//! while an attempt takes long, a trivial query is sent to the database once a second. It uses its
//! own connection, because one of the pool could wait behind slow statements. If an attempt times
//! out while the database does not respond, the cause is an outage. A slow statement does not keep
//! the database from responding to the query.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::time::{Instant, timeout};

use crate::postgres::{errors::with_causes, session_fault::is_session_fault};

/// Time after which an attempt counts as long and the database is queried. Most attempts are far
/// shorter.
pub(crate) const LONG: Duration = Duration::from_millis(500);

/// Time without a response that counts as a silence. A trivial query takes milliseconds, or tens of
/// milliseconds with a new connection.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Time between two queries.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Tracks whether a database responds.
#[derive(Debug)]
pub(crate) struct Pulse {
    pool: PgPool,
    known: Mutex<Known>,
    /// Limits the queries to one at a time. The connection is kept while queries follow one
    /// another.
    asking: tokio::sync::Mutex<Asking>,
}

#[derive(Debug, Default)]
struct Asking {
    connection: Option<PgConnection>,
    /// Start time of the last query.
    began: Option<Instant>,
}

/// The last silence, and the number of long attempts.
#[derive(Debug, Default)]
struct Known {
    silence: Option<Silence>,
    long: usize,
    is_asked: bool,
}

/// A period without a response of the database. Pure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Silence {
    from: Instant,
    to: Instant,
    is_over: bool,
}

impl Silence {
    /// Records that a query that began at `began` had no response until `now`.
    fn go_on(before: Option<Self>, began: Instant, now: Instant) -> Self {
        let from = before
            .filter(|before| !before.is_over)
            .map_or(began, |before| before.from);
        Self {
            from,
            to: now,
            is_over: false,
        }
    }

    /// Returns `true` if an attempt that began at `began` and ran until now overlaps the silence.
    fn meets(&self, began: Instant) -> bool {
        !self.is_over || began <= self.to
    }
}

/// Returns `true` if the error is a response of a working server, for example one that accepts no
/// more connections for a reason of its own.
fn is_answer(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => !error.code().is_some_and(|code| is_session_fault(&code)),
        sqlx::Error::Configuration(_) => true,
        _ => false,
    }
}

/// A long attempt. The database is queried while this value exists.
pub(crate) struct Long(Arc<Pulse>);

impl Pulse {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self {
            pool,
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// Registers a long attempt. The database is queried while the returned value exists.
    #[expect(clippy::disallowed_methods, reason = "ends with the last long attempt")]
    pub(crate) fn take_long(self: &Arc<Self>) -> Long {
        let mut known = self.known();
        known.long += 1;
        if !std::mem::replace(&mut known.is_asked, true) {
            tokio::spawn(self.clone().ask_on());
        }
        Long(self.clone())
    }

    /// Returns `true` if the database did not respond during an attempt that began at `began` and
    /// has just timed out.
    pub(crate) async fn was_silent_since(&self, began: Instant) -> bool {
        if self
            .known()
            .silence
            .is_some_and(|silence| silence.meets(began))
        {
            return true;
        }
        self.ask(Instant::now()).await;
        self.known()
            .silence
            .is_some_and(|silence| silence.meets(began))
    }

    async fn ask_on(self: Arc<Self>) {
        loop {
            self.ask(Instant::now()).await;
            {
                let mut known = self.known();
                // Queries continue until a silence has ended, even if all attempts have timed out.
                if known.long == 0 && known.silence.is_none_or(|silence| silence.is_over) {
                    known.is_asked = false;
                    break;
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        self.asking.lock().await.connection = None;
    }

    /// Queries the database, unless a query that began after `since` has been made in the meantime.
    async fn ask(&self, since: Instant) {
        let mut asking = self.asking.lock().await;
        if asking.began.is_some_and(|began| began >= since) {
            return;
        }
        let began = *asking.began.insert(Instant::now());
        let answered = timeout(ANSWER_WITHIN, self.question(&mut asking.connection)).await;
        let now = Instant::now();
        let failure = match answered {
            Ok(Ok(())) => None,
            Ok(Err(error)) if is_answer(&error) => {
                tracing::debug!(
                    error = with_causes(&error),
                    "the database responds and refuses another connection"
                );
                None
            }
            Ok(Err(error)) => Some(with_causes(&error)),
            Err(_) => Some("no response within a second".to_owned()),
        };
        let mut known = self.known();
        match failure {
            None => {
                if let Some(silence) = known.silence.as_mut().filter(|silence| !silence.is_over) {
                    (silence.to, silence.is_over) = (now, true);
                    tracing::info!(
                        seconds = (now - silence.from).as_secs(),
                        "the database responds again"
                    );
                }
            }
            Some(reason) => {
                asking.connection = None;
                if known.silence.is_none_or(|silence| silence.is_over) {
                    tracing::warn!(
                        reason,
                        "the database does not respond: attempts that time out meanwhile do not \
                         count"
                    );
                }
                known.silence = Some(Silence::go_on(known.silence, began, now));
            }
        }
    }

    /// Queries the database on the kept connection, or on a new one.
    async fn question(&self, kept: &mut Option<PgConnection>) -> Result<(), sqlx::Error> {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => PgConnection::connect_with(&self.pool.connect_options()).await?,
        };
        connection.ping().await?;
        *kept = Some(connection);
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Long ===

impl Drop for Long {
    fn drop(&mut self) {
        self.0.known().long -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_meets_a_silence_that_lasts_or_ended_after_its_begin() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let first = Silence::go_on(None, at(10), at(11));
        let lasts = Silence::go_on(Some(first), at(12), at(13));
        assert_eq!((lasts.from, lasts.to), (at(10), at(13)));
        assert!(lasts.meets(at(5)) && lasts.meets(at(20)));
        let over = Silence {
            to: at(30),
            is_over: true,
            ..lasts
        };
        assert!(over.meets(at(5)) && over.meets(at(30)) && !over.meets(at(31)));
        assert_eq!(Silence::go_on(Some(over), at(40), at(41)).from, at(40));
    }
}
