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
    pub(super) schema: String,
    pub(super) table: &'static str,
    pub(super) value: T,
    /// Derives the result from `value` and the number of rows.
    pub(super) result: fn(T, u64) -> T,
}

/// Sets a savepoint, which the server refuses outside a transaction. It has no other effect.
const PROBE: &str = "savepoint tidings_publish; release savepoint tidings_publish";

/// SQLSTATE of a savepoint outside a transaction.
const NO_TRANSACTION: &str = "25P01";

/// A driver. The functions of a blocking driver never wait.
pub(crate) trait Driver: Send {
    type Error: Error + Send + Sync + 'static;

    /// Returns whether the connection is in a transaction. Returns `None` if the driver does not
    /// know, because the transaction may have been begun with SQL.
    fn is_in_transaction(&mut self) -> Option<bool>;

    /// Executes several statements without parameters. Called only if the driver does not know
    /// whether the connection is in a transaction.
    fn batch(&mut self, sql: &'static str) -> impl Future<Output = Result<(), Self::Error>> + Send;

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
    let table = format!("{}.{}", operation.schema, operation.table);
    let failed = |error: D::Error| {
        let sqlstate = D::sqlstate(&error, &table);
        PublishError::database(table.clone(), sqlstate, D::cleaned(error).into())
    };
    let is_allowed = operation.autocommit
        || match driver.is_in_transaction() {
            Some(known) => known,
            None => match driver.batch(PROBE).await {
                Ok(()) => true,
                Err(error) => match D::sqlstate(&error, &table).as_deref() {
                    Some(NO_TRANSACTION) => false,
                    _ => return Err(failed(error)),
                },
            },
        };
    if !is_allowed {
        return Err(PublishError::NoTransaction);
    }
    let rows = driver.execute(statement).await.map_err(failed)?;
    Ok((operation.result)(operation.value, rows))
}
