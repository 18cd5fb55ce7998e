//! SQLSTATEs that report the state of a transaction or of a prepared statement.

use std::borrow::Cow;

/// Codes of `savepoint` in a failed transaction and outside of a transaction.
pub(super) const HAD_FAILED: &str = "25P02";
const HAD_ENDED: &str = "25P01";

/// Code of a lock that was not acquired in time.
pub(super) const LOCKED: &str = "55P03";

/// Codes of a prepared statement that does not exist, or exists already.
pub(super) const NO_SUCH_STATEMENT: &str = "26000";
pub(super) const STATEMENT_EXISTS: &str = "42P05";

/// Returns `true` if a commit was rejected because the transaction had failed, or had ended before
/// the end of the handler.
pub(crate) fn could_not(error: &sqlx::Error) -> bool {
    matches!(code(error).as_deref(), Some(HAD_FAILED | HAD_ENDED))
}

/// Returns `true` if the server has ended the transaction at its beginning or end and the
/// connection is still usable. Causes are a constraint, a conflict with another transaction, a
/// lock, or that there was nothing to end or to execute.
pub(super) fn is_over(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| {
        [HAD_ENDED, NO_SUCH_STATEMENT, "23", "40", "55"]
            .iter()
            .any(|class| code.starts_with(class))
    })
}

pub(super) fn code(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
}
