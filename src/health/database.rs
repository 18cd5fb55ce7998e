//! Health check of a database.

use sqlx::{Connection, PgPool};

use super::{Check, Checking, Status};
use crate::postgres::errors::with_causes;

/// Health check of a database: pings it on a connection of this pool. An exhausted pool fails the
/// check too, because requests get no connection either.
///
/// ```no_run
/// # fn example(pool: sqlx::PgPool) {
/// use tidings::health::{DatabaseCheck, Health};
///
/// let health = Health::new().check("database", DatabaseCheck::new(&pool));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DatabaseCheck {
    pool: PgPool,
}

impl DatabaseCheck {
    /// Creates a check that uses this pool.
    pub fn new(pool: &PgPool) -> Self {
        Self { pool: pool.clone() }
    }

    async fn ping(&self) -> Result<&'static str, sqlx::Error> {
        self.pool.acquire().await?.ping().await?;
        Ok("connected")
    }
}

// === impl Check ===

impl Check for DatabaseCheck {
    fn check(&self) -> Checking<'_> {
        Box::pin(async { Status::from(self.ping().await.map_err(|error| with_causes(&error))) })
    }
}
