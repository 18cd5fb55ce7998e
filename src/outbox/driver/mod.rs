//! Drivers that execute the statements of the outbox, each behind a feature.

#[cfg(any(
    feature = "diesel-async",
    feature = "sea-orm",
    feature = "sqlx",
    feature = "tokio-postgres"
))]
use std::pin::Pin;

#[cfg(feature = "diesel")]
mod diesel;
#[cfg(feature = "diesel-async")]
mod diesel_async;
#[cfg(any(feature = "diesel", feature = "diesel-async"))]
mod diesel_query;
#[cfg(feature = "sea-orm")]
mod sea_orm;
#[cfg(feature = "sqlx")]
pub(crate) mod sqlx;
#[cfg(feature = "tokio-postgres")]
mod tokio_postgres;

/// Sets a savepoint, which the server refuses outside a transaction. It has no other effect. For
/// drivers that do not know a transaction that was begun with SQL.
#[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
const PROBE: &str = "savepoint tidings_publish; release savepoint tidings_publish";

/// Returns the answer that the result of [`PROBE`] means.
#[cfg(any(feature = "sqlx", feature = "tokio-postgres"))]
fn probed<D: super::connection::Driver>(result: Result<(), D::Error>) -> Result<bool, D::Error> {
    match result {
        Ok(()) => Ok(true),
        // A savepoint outside a transaction.
        Err(error) if D::sqlstate(&error, "").as_deref() == Some("25P01") => Ok(false),
        Err(error) => Err(error),
    }
}

/// The answer of an asynchronous driver.
#[cfg(any(
    feature = "diesel-async",
    feature = "sea-orm",
    feature = "sqlx",
    feature = "tokio-postgres"
))]
pub(crate) type Publishing<'c, T> =
    Pin<Box<dyn Future<Output = Result<T, super::PublishError>> + Send + 'c>>;

/// Implements [`Connection`](super::Connection) for a type of an asynchronous driver.
#[cfg(any(
    feature = "diesel-async",
    feature = "sea-orm",
    feature = "sqlx",
    feature = "tokio-postgres"
))]
macro_rules! answers_with_a_future {
    ($connection:ty, $name:ident => $driver:expr) => {
        impl<'c> $crate::outbox::connection::sealed::Sealed for $connection {}

        impl<'c> $crate::outbox::Connection<'c> for $connection
        where
            Self: 'c,
        {
            type Answer<T: Send + 'c> = $crate::outbox::driver::Publishing<'c, T>;

            fn run<T: Send + 'c>(
                self,
                operation: $crate::outbox::connection::Planned<'c, T>,
            ) -> Self::Answer<T> {
                let $name = self;
                let driver = $driver;
                Box::pin($crate::outbox::connection::perform(driver, operation))
            }
        }
    };
}
#[cfg(any(
    feature = "diesel-async",
    feature = "sea-orm",
    feature = "sqlx",
    feature = "tokio-postgres"
))]
pub(crate) use answers_with_a_future;
