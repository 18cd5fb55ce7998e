//! Blocking calls of a Kafka client, each with a time limit on the monotonic clock.
//!
//! librdkafka waits on condition variables with wall-clock deadlines. If the wall clock is set
//! back, such a wait becomes longer by the same amount, and librdkafka's own timeouts do not end
//! it. Therefore each call runs on its own thread, and the caller stops waiting at the limit. The
//! thread is abandoned and ends when the client returns. The caller replaces the client, because a
//! new one computes its deadlines from the new time.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use crate::failpoint;

/// Interval of the log lines about a call that takes long.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Additional time that a client gets to return after its own timeout. Only a busy machine needs
/// it.
pub(crate) const OVERDUE: Duration = Duration::from_secs(15);

/// Timeout of a request to the cluster. Longer than a leader election, so that an election does not
/// look like an outage.
pub(crate) const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit of a request, and of a call that reports progress before each request or poll.
pub(crate) const ASK_LIMIT: Duration = ASK_TIMEOUT.saturating_add(OVERDUE);

/// A call that did not return a result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    /// The client did not return.
    #[error(
        "the Kafka client has not returned from {call} for {} s (its waits depend on the wall \
         clock: was the clock set back?); it is replaced",
        .limit.as_secs()
    )]
    Silent { call: &'static str, limit: Duration },
    /// The thread ended without a result, or could not be started.
    #[error("the thread for {0} could not be started, or it panicked")]
    Thread(&'static str),
}

/// Progress counter of a long call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beat(Arc<AtomicU64>);

impl Beat {
    /// Reports progress, which restarts the time limit of the call.
    pub(crate) fn touch(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of progress reports.
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs `work` on its own thread and waits for it for up to `limit`.
///
/// # Errors
///
/// Returns [`Unanswered`] if the thread has not returned by then. The thread is abandoned.
///
/// # Cancel safety
///
/// Dropping the future abandons the thread.
pub(crate) async fn bounded<T: Send + 'static>(
    call: &'static str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unanswered> {
    watched(call, limit, |_| work()).await
}

/// Same as [`bounded`], for a call that may take long while it reports progress. `limit` applies to
/// the time without a report.
///
/// # Errors
///
/// See [`bounded`].
///
/// # Cancel safety
///
/// See [`bounded`].
pub(crate) async fn watched<T: Send + 'static>(
    call: &'static str,
    limit: Duration,
    work: impl FnOnce(&Beat) -> T + Send + 'static,
) -> Result<T, Unanswered> {
    let (answer, mut answered) = oneshot::channel();
    let beat = Beat::default();
    let (seen, runtime) = (beat.clone(), tokio::runtime::Handle::current());
    let work = move || {
        let _runtime = runtime.enter();
        failpoint::called(call);
        let _ = answer.send(work(&beat));
    };
    std::thread::Builder::new()
        .name("tidings-kafka-call".into())
        .spawn(work)
        .map_err(|_| Unanswered::Thread(call))?;
    let (mut count, mut heard) = (seen.count(), Instant::now());
    loop {
        let left = limit.saturating_sub(heard.elapsed());
        if let Ok(answer) = timeout(left.min(LOG_EVERY), &mut answered).await {
            return answer.map_err(|_| Unanswered::Thread(call));
        }
        if seen.count() != count {
            (count, heard) = (seen.count(), Instant::now());
            continue;
        }
        if heard.elapsed() >= limit {
            return Err(Unanswered::Silent { call, limit });
        }
        tracing::warn!(
            call,
            seconds = heard.elapsed().as_secs(),
            limit = limit.as_secs(),
            "waits for the Kafka client"
        );
    }
}

/// A client that several callers share and that can be replaced.
pub(crate) struct Replaceable<T>(Mutex<Option<Arc<T>>>);

impl<T> Default for Replaceable<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Replaceable<T> {
    /// Returns the current client, or opens one.
    ///
    /// # Errors
    ///
    /// Returns the error of `open`.
    pub(crate) fn get<E>(&self, open: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        let mut present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*present {
            Some(client) => Ok(client.clone()),
            None => Ok(present.insert(Arc::new(open()?)).clone()),
        }
    }

    /// Removes `client` if it is still the current one.
    pub(crate) fn discard(&self, client: &Arc<T>) {
        let mut present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if present
            .as_ref()
            .is_some_and(|present| Arc::ptr_eq(present, client))
        {
            *present = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_call_that_never_returns_is_given_up_after_its_limit() {
        let (_keeps, hangs) = mpsc::channel::<()>();
        let limit = Duration::from_millis(50);
        let given_up = bounded("a wait", limit, move || hangs.recv()).await;
        assert_eq!(
            given_up.expect_err("no answer"),
            Unanswered::Silent {
                call: "a wait",
                limit
            }
        );
    }

    #[tokio::test]
    async fn a_call_that_reports_progress_may_take_longer_than_its_limit() {
        let limit = Duration::from_secs(2);
        let answer = watched("a long read", limit, move |beat| {
            for _ in 0..30 {
                std::thread::sleep(Duration::from_millis(100));
                beat.touch();
            }
            7
        });
        assert_eq!(answer.await, Ok(7));
    }

    #[tokio::test]
    async fn a_call_that_panics_is_an_error_of_its_caller() {
        let panicked = bounded("a wait", Duration::from_secs(60), || panic!("on purpose")).await;
        assert_eq!(panicked, Err::<(), _>(Unanswered::Thread("a wait")));
    }

    #[test]
    fn a_client_is_replaced_once_however_many_callers_discard_it() {
        let (clients, mut made) = (Replaceable::default(), 0);
        let mut open = || {
            made += 1;
            Ok::<_, ()>(made)
        };
        let first = clients.get(&mut open).expect("made");
        clients.discard(&first);
        let second = clients.get(&mut open).expect("made");
        clients.discard(&first);
        assert_eq!(
            (*first, *second, *clients.get(&mut open).expect("kept")),
            (1, 2, 2)
        );
    }
}
