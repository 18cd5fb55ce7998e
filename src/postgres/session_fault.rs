//! Pooled sessions that cannot do their work although their connections are alive.
//!
//! A session takes `default_transaction_read_only` from its database or role when it starts. When a
//! server becomes a standby, its sessions stay connected to it. The pool can detect neither,
//! because such a session answers a ping, and would use it again until its maximum lifetime.

use std::error::Error;
use std::time::Duration;

use sqlx::{Executor as _, PgPool, PgTransaction};

/// Time within which a session that has just failed returns to its pool.
const RETURN_TIME: Duration = Duration::from_millis(50);

/// Ends the caller's session on the server, so that the pool closes the connection.
const TERMINATE: &str = "select pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid())";

/// Returns `true` if a session that reported this SQLSTATE must be closed: the transaction is
/// read-only, the server ended or refuses the session, or the connection failed.
pub(crate) fn is_session_fault(code: &str) -> bool {
    matches!(
        code,
        "25006" | "57P01" | "57P02" | "57P03" | "57P04" | "57P05"
    ) || code.starts_with("08")
}

/// Returns `true` if the error, or one of its causes, requires that the session is closed.
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

/// Closes the session of a transaction for whose error [`ends_session`] is `true`, and the idle
/// sessions of its pool, which may be in the same state.
pub(crate) async fn close(mut transaction: PgTransaction<'_>, pool: &PgPool) {
    // The server may have ended the session already.
    let _ = transaction.execute("rollback").await;
    let _ = transaction.execute(TERMINATE).await;
    drop(transaction);
    close_idle(pool);
}

/// Closes the idle sessions of the pool if [`ends_session`] is `true` for the error of a statement
/// that ran on the pool.
#[expect(clippy::disallowed_methods, reason = "ends after `RETURN_TIME`")]
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
    // Bounded, because sessions that return in the meantime may be needed by others.
    for _ in 0..pool.num_idle() {
        let Some(mut session) = pool.try_acquire() else {
            return;
        };
        session.close_on_drop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_is_read_only_or_was_ended_is_closed_and_no_other() {
        for code in [
            "25006", "57P01", "57P02", "57P03", "57P05", "08006", "08P01",
        ] {
            assert!(is_session_fault(code), "{code}");
        }
        for code in [
            "23505", "25P02", "25P03", "40001", "42501", "53300", "57014",
        ] {
            assert!(!is_session_fault(code), "{code}");
        }
        assert!(!ends_session(&sqlx::Error::PoolTimedOut));
    }
}
