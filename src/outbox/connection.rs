//! Connections that publish: the seam between the outbox and the drivers.

#![cfg_attr(
    not(any(
        feature = "diesel",
        feature = "diesel-async",
        feature = "sea-orm",
        feature = "sqlx",
        feature = "tokio-postgres"
    )),
    allow(
        dead_code,
        unreachable_pub,
        reason = "nothing is executed without a driver"
    )
)]

use std::error::Error;
use std::sync::Arc;

use super::{PublishError, Statement};

/// A connection on which events are published. It is in a transaction of the caller.
///
/// | feature | type | answer |
/// |---|---|---|
/// | `sqlx` | `&mut PgTransaction`, `&mut PgConnection`, `&mut PoolConnection` | a future |
/// | `tokio-postgres` | `&Transaction`, `&Client` | a future |
/// | `diesel` | `&mut PgConnection` | the result |
/// | `diesel-async` | `&mut AsyncPgConnection` | a future |
/// | `sea-orm` | `&DatabaseTransaction` | a future |
///
/// Also the `Tx` and `Savepoint` of a subscriber's handler. A pool is not among them, deliberately:
/// it would run the statement on some other connection, outside the caller's transaction.
///
/// A driver that is not in the table executes a [`Statement`] by itself.
#[diagnostic::on_unimplemented(
    message = "an event cannot be published on `{Self}`",
    label = "not a connection in a transaction of the caller",
    note = "begin a transaction and give it by reference: `&mut transaction` of sqlx; a pool would \
            run the statement outside of it",
    note = "each driver has a feature: `sqlx`, `tokio-postgres`, `diesel`, `diesel-async`, `sea-orm`"
)]
pub trait Connection<'c>: Sized + sealed::Sealed {
    /// The answer of a call: a future of the result, or with diesel the result itself.
    type Answer<T: Send + 'c>;

    #[doc(hidden)]
    fn run<T: Send + 'c>(self, operation: Planned<'c, T>) -> Self::Answer<T>;
}

pub(crate) mod sealed {
    pub trait Sealed {}
}

/// An operation, or the reason why nothing is sent.
pub(crate) type Planned<'e, T> = Result<Operation<'e, T>, PublishError>;

/// One call of the outbox: its statement, and how the result is derived from it.
#[derive(Debug)]
pub struct Operation<'e, T> {
    /// `None` if nothing has to be sent.
    pub(super) statement: Option<Statement<'e>>,
    /// The connection does not have to be in a transaction.
    pub(super) autocommit: bool,
    /// The name of the table with its schema, for errors.
    pub(super) table: Arc<str>,
    pub(super) value: T,
    /// Derives the result from `value` and the number of rows.
    pub(super) result: fn(T, u64) -> T,
}

/// A driver. The functions of a blocking driver never wait.
pub(crate) trait Driver: Send {
    type Error: Error + Send + Sync + 'static;

    /// Returns `true` if the connection is in a transaction.
    fn is_in_transaction(&mut self) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Executes a statement. Returns the number of its rows.
    fn execute(
        &mut self,
        statement: Statement<'_>,
    ) -> impl Future<Output = Result<u64, Self::Error>> + Send;

    /// Returns the SQLSTATE of an error of a statement that uses this table, if the driver knows
    /// it.
    fn sqlstate(error: &Self::Error, table: &str) -> Option<String>;

    /// Changes the text of an error before it is returned.
    fn cleaned(error: Self::Error) -> Self::Error {
        error
    }
}

/// Performs an operation: the same steps with every driver.
pub(crate) async fn perform<D: Driver, T>(
    mut driver: D,
    operation: Planned<'_, T>,
) -> Result<T, PublishError> {
    let operation = operation?;
    let Some(statement) = operation.statement else {
        return Ok(operation.value);
    };
    let table = operation.table;
    let failed = |error: D::Error| {
        let sqlstate = D::sqlstate(&error, &table);
        PublishError::database(&table, sqlstate, D::cleaned(error).into())
    };
    if !operation.autocommit && !driver.is_in_transaction().await.map_err(failed)? {
        return Err(PublishError::NoTransaction);
    }
    let rows = driver.execute(statement).await.map_err(failed)?;
    Ok((operation.result)(operation.value, rows))
}
