//! The begin of a transaction on a pooled connection, which may be cancelled.
//!
//! sqlx 0.9.0 counts a transaction only after the server has confirmed its `begin`. If the future
//! is dropped before, sqlx rolls nothing back, and the connection returns to its pool with an open
//! transaction (transact-rs/sqlx#4393; the repair is not released). Later statements on that
//! connection are never committed, and their locks are never released.

use std::pin::Pin;
use std::task::{Context, Poll};

use sqlx::{PgPool, PgTransaction};
use tokio::runtime::Handle;

/// Begins a transaction.
///
/// # Errors
///
/// Returns the database's error if the pool has no connection or the transaction cannot begin.
///
/// # Cancel safety
///
/// If the future is dropped, the transaction begins in the background and is then rolled back.
#[expect(clippy::disallowed_methods, reason = "wrapped in `Completed`")]
pub(crate) async fn begin(pool: &PgPool) -> Result<PgTransaction<'static>, sqlx::Error> {
    let pool = pool.clone();
    Completed::new(async move { pool.begin().await }).await
}

/// Begins a transaction with a statement, for example one that sets the isolation level.
///
/// # Errors
///
/// Returns the errors of [`begin`].
///
/// # Cancel safety
///
/// As [`begin`].
#[cfg(feature = "cli")]
#[expect(clippy::disallowed_methods, reason = "wrapped in `Completed`")]
pub(crate) async fn begin_with(
    pool: &PgPool,
    statement: &'static str,
) -> Result<PgTransaction<'static>, sqlx::Error> {
    let pool = pool.clone();
    Completed::new(async move { pool.begin_with(statement).await }).await
}

type Begins = Pin<Box<dyn Future<Output = Result<PgTransaction<'static>, sqlx::Error>> + Send>>;

/// A future that runs to its end even if it is dropped. `None` once it has ended.
struct Completed(Option<Begins>);

impl Completed {
    fn new(
        begins: impl Future<Output = Result<PgTransaction<'static>, sqlx::Error>> + Send + 'static,
    ) -> Self {
        Self(Some(Box::pin(begins)))
    }
}

impl Future for Completed {
    type Output = Result<PgTransaction<'static>, sqlx::Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let begins = self.0.as_mut().expect("not polled after its end");
        let ended = std::task::ready!(begins.as_mut().poll(context));
        self.0 = None;
        Poll::Ready(ended)
    }
}

impl Drop for Completed {
    fn drop(&mut self) {
        // Without a runtime, the process ends, and the server ends the transaction.
        if let (Some(begins), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            #[expect(
                clippy::disallowed_methods,
                reason = "ends with `begin`, which the pool's time limit and the connection bound"
            )]
            runtime.spawn(begins);
        }
    }
}
