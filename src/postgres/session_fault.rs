//! Sessions of a pool that can do no more work, although their connections are alive.
//!
//! A session takes `default_transaction_read_only` from its database or role when it starts, and a session of a server that became
//! a standby stays there. The pool cannot detect either, since such a session answers a ping. It would be used again until its
//! maximum lifetime.

use std::error::Error;
use std::time::Duration;

use sqlx::{Executor as _, PgPool, PgTransaction};

/// The time in which a session that has just failed returns to its pool.
const RETURN_TIME: Duration = Duration::from_millis(50);

/// Ends the session of the caller on the server, so that its pool closes the connection.
const TERMINATE: &str = "select pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid())";

/// Whether a session that reported this SQLSTATE is to be closed: the transaction is read-only, the server ended the session or
/// does not accept it, or the connection failed.
pub(crate) fn is_session_fault(code: &str) -> bool {
    matches!(code, "25006" | "57P01" | "57P02" | "57P03" | "57P04" | "57P05") || code.starts_with("08")
}

/// Whether the error, or a cause of it, is one of a session that is to be closed.
pub(crate) fn ends_session(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(sqlx::Error::Database(error)) = error.downcast_ref() {
            return error.code().is_some_and(|code| is_session_fault(&code));
        }
        next = error.source();
    }
    false
}

/// Closes the session of a transaction that failed by [`ends_session`], and the idle ones of its pool, which may be like it.
pub(crate) async fn close(mut transaction: PgTransaction<'_>, pool: &PgPool) {
    // The server may have ended it already.
    let _ = transaction.execute("rollback").await;
    let _ = transaction.execute(TERMINATE).await;
    drop(transaction);
    close_idle(pool);
}

/// Closes the idle sessions of the pool if a statement on the pool failed by [`ends_session`].
pub(crate) fn close_after(error: &(dyn Error + 'static), pool: &PgPool) {
    if ends_session(error) {
        let pool = pool.clone();
        tokio::spawn(async move {
            tokio::time::sleep(RETURN_TIME).await;
            close_idle(&pool);
        });
    }
}

fn close_idle(pool: &PgPool) {
    // Bounded: sessions that return in the meantime are for others.
    for _ in 0..pool.num_idle() {
        let Some(mut session) = pool.try_acquire() else { return };
        session.close_on_drop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_is_read_only_or_was_ended_is_closed_and_no_other() {
        for code in ["25006", "57P01", "57P02", "57P03", "57P05", "08006", "08P01"] {
            assert!(is_session_fault(code), "{code}");
        }
        for code in ["23505", "25P02", "25P03", "40001", "42501", "53300", "57014"] {
            assert!(!is_session_fault(code), "{code}");
        }
        assert!(!ends_session(&sqlx::Error::PoolTimedOut));
    }
}
