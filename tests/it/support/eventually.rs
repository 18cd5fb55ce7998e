//! Bounded waits for a state that can only be polled.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

/// Time limit of a wait. It is long, so that only a hang fails a test and not a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Time limit of the functions in this file, whose waits may contain several steps.
const LIMIT: Duration = Duration::from_secs(240);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Polls until `look` returns `Ok`, and returns the value.
///
/// # Panics
///
/// Panics with the last error if that does not happen within [`LIMIT`].
#[track_caller]
pub(crate) fn eventually<T, E: Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let began = tokio::time::Instant::now();
        loop {
            match look().await {
                Ok(value) => return value,
                Err(seen) => assert!(
                    began.elapsed() < LIMIT,
                    "{what}: not within {LIMIT:?}, last seen {seen:?} (at {caller})"
                ),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Polls until `look` returns a value.
///
/// # Panics
///
/// Panics if that does not happen within [`LIMIT`].
pub(crate) async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    eventually(what, async || look().await.ok_or("nothing")).await
}

/// Polls until the number that a query returns satisfies `holds`.
///
/// # Panics
///
/// Panics with the last number if that does not happen within [`LIMIT`].
pub(crate) async fn until_number(
    pool: &sqlx::PgPool,
    what: &str,
    query: &'static str,
    holds: impl Fn(i64) -> bool,
) {
    eventually(what, async || {
        let number: i64 = sqlx::query_scalar(query)
            .fetch_one(pool)
            .await
            .expect("the query succeeds");
        holds(number).then_some(()).ok_or(number)
    })
    .await;
}

/// Same as [`eventually`] for a program or a page, which nothing in this process awaits. Blocks.
///
/// # Panics
///
/// Panics with the last error if that does not happen within [`LIMIT`].
#[track_caller]
pub(crate) fn eventually_blocking<T, E: Debug>(
    what: &str,
    mut look: impl FnMut() -> Result<T, E>,
) -> T {
    let began = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) => assert!(
                began.elapsed() < LIMIT,
                "{what}: not within {LIMIT:?}, last seen {seen:?}"
            ),
        }
        std::thread::sleep(PAUSE);
    }
}

/// Same as [`until`], blocking.
///
/// # Panics
///
/// Panics if that does not happen within [`LIMIT`].
#[track_caller]
pub(crate) fn until_blocking<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    eventually_blocking(what, || look().ok_or("nothing"))
}
