//! Decisions about scheduled events.

use uuid::Uuid;

use crate::inspect::Database;
use crate::outbox::{Outbox, PublishError};
use crate::postgres::begin;

/// Withdraws a scheduled event. Returns `false` if it is no longer scheduled.
///
/// # Errors
///
/// Returns an error if the table is missing, the role may not delete, or the query fails.
pub(crate) async fn cancel_scheduled(database: &Database, id: Uuid) -> Result<bool, PublishError> {
    let mut tx = begin(&database.pool).await?;
    let outbox = Outbox::new().schema(&database.schema);
    let is_cancelled = outbox.cancel(&mut tx, id.into()).await?;
    tx.commit().await?;
    Ok(is_cancelled)
}
