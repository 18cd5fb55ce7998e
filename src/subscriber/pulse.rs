//! Whether the inbox's database answers, for attempts that ran out of time.
//!
//! A layer that bounds attempts cuts them off with the same error whether a handler is slow or its database hangs. The second is an
//! outage, and costs no event an attempt. So while an attempt takes long, the database is asked a trivial question once a second, on a
//! connection of its own: one of the pool may wait behind the statements that are slow. An attempt that ran out of time during a
//! silence of the database met an outage. A statement that is slow by itself leaves the database answering.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::time::{Instant, timeout};

use crate::postgres::errors::with_causes;
use crate::postgres::session_fault::is_session_fault;

/// The time after which the database is asked during an attempt: most attempts are shorter by far.
pub(super) const LONG: Duration = Duration::from_millis(500);

/// The time without an answer that is a silence. A trivial question takes milliseconds, with a new connection tens of them.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// The time between two questions.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// The signs of life of a database.
#[derive(Debug)]
pub(super) struct Pulse {
    pool: PgPool,
    known: Mutex<Known>,
    /// One question at a time, on a connection that is kept while questions follow one another.
    asking: tokio::sync::Mutex<Asking>,
}

#[derive(Debug, Default)]
struct Asking {
    connection: Option<PgConnection>,
    /// The begin of the last question.
    began: Option<Instant>,
}

/// The last silence, and how many attempts take long.
#[derive(Debug, Default)]
struct Known {
    silence: Option<Silence>,
    long: usize,
    is_asked: bool,
}

/// A time in which the database did not answer. Pure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Silence {
    from: Instant,
    to: Instant,
    is_over: bool,
}

impl Silence {
    /// A question that began then was not answered until now.
    fn go_on(before: Option<Self>, began: Instant, now: Instant) -> Self {
        let from = before.filter(|before| !before.is_over).map_or(began, |before| before.from);
        Self { from, to: now, is_over: false }
    }

    /// Whether an attempt that began then and ran until now met it.
    fn meets(&self, began: Instant) -> bool {
        !self.is_over || began <= self.to
    }
}

/// Whether the server answered: it refuses another connection for its own reasons, and works.
fn is_answer(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => !error.code().is_some_and(|code| is_session_fault(&code)),
        sqlx::Error::Configuration(_) => true,
        _ => false,
    }
}

/// An attempt that takes long.
pub(super) struct Long(Arc<Pulse>);

impl Pulse {
    pub(super) fn new(pool: PgPool) -> Self {
        Self { pool, known: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    /// An attempt takes long: the database is asked as long as this is kept.
    pub(super) fn take_long(self: &Arc<Self>) -> Long {
        let mut known = self.known();
        known.long += 1;
        if !std::mem::replace(&mut known.is_asked, true) {
            tokio::spawn(self.clone().ask_on());
        }
        Long(self.clone())
    }

    /// True if the database was silent during an attempt that began then and has just run out of time.
    pub(super) async fn was_silent_since(&self, began: Instant) -> bool {
        if self.known().silence.is_some_and(|silence| silence.meets(began)) {
            return true;
        }
        self.ask(Instant::now()).await;
        self.known().silence.is_some_and(|silence| silence.meets(began))
    }

    async fn ask_on(self: Arc<Self>) {
        loop {
            self.ask(Instant::now()).await;
            {
                let mut known = self.known();
                // A silence has its end, also if all attempts have run out of time.
                if known.long == 0 && known.silence.is_none_or(|silence| silence.is_over) {
                    known.is_asked = false;
                    break;
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        self.asking.lock().await.connection = None;
    }

    /// Asks the database, unless a question that began after this time was asked meanwhile.
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
                tracing::debug!(error = with_causes(&error), "the database answers and refuses another connection");
                None
            }
            Ok(Err(error)) => Some(with_causes(&error)),
            Err(_) => Some("no answer within a second".to_owned()),
        };
        let mut known = self.known();
        match failure {
            None => {
                if let Some(silence) = known.silence.as_mut().filter(|silence| !silence.is_over) {
                    (silence.to, silence.is_over) = (now, true);
                    tracing::info!(seconds = (now - silence.from).as_secs(), "the database answers again");
                }
            }
            Some(reason) => {
                asking.connection = None;
                if known.silence.is_none_or(|silence| silence.is_over) {
                    tracing::warn!(reason, "the database does not answer: attempts that run out of time meanwhile do not count");
                }
                known.silence = Some(Silence::go_on(known.silence, began, now));
            }
        }
    }

    /// Asks by the connection that is kept, or by a new one.
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
        let over = Silence { to: at(30), is_over: true, ..lasts };
        assert!(over.meets(at(5)) && over.meets(at(30)) && !over.meets(at(31)));
        assert_eq!(Silence::go_on(Some(over), at(40), at(41)).from, at(40));
    }
}
