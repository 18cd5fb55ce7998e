//! A look at the server: what is visible, and how far its log goes.

use sqlx::{PgConnection, Row as _};

use crate::{
    postgres::Lsn,
    relay::{error::Interruption, leadership::relay_store::within, position::Snapshot},
};

/// What a look saw.
pub(super) struct Look {
    pub(super) snapshot: Snapshot,
    /// The log's insert position, read after the snapshot was taken.
    pub(super) insert: Lsn,
    /// How far the log is flushed.
    pub(super) flushed: Lsn,
}

/// Takes a snapshot, then looks at the log.
///
/// # Errors
/// A lost connection.
pub(super) async fn look(session: &mut PgConnection) -> Result<Look, Interruption> {
    let doing = "taking a snapshot";
    // One statement: its snapshot is taken before any of its functions runs.
    let row = sqlx::query(
        "select pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text",
    );
    let row = within(doing, row.fetch_one(session)).await?;
    let text = |at: usize| {
        row.try_get::<String, _>(at)
            .map_err(Interruption::sql(doing))
    };
    let snapshot = text(0)?.parse().map_err(|error| {
        Interruption::Refused(format!(
            "the server answers with a strange snapshot: {error}"
        ))
    })?;
    Ok(Look {
        snapshot,
        insert: text(1)?.parse().unwrap_or_default(),
        flushed: text(2)?.parse().unwrap_or_default(),
    })
}
