//! A snapshot of the server, together with its log positions.

use sqlx::{PgConnection, Row as _};

use crate::{
    postgres::Lsn,
    relay::{error::Interruption, leadership::relay_store::within, position::Snapshot},
};

/// A snapshot and the log positions read with it.
pub(super) struct ServerSnapshot {
    pub(super) snapshot: Snapshot,
    /// The log's insert position, read after the snapshot was taken.
    pub(super) insert: Lsn,
    /// The end of the flushed log.
    pub(super) flushed: Lsn,
}

/// Takes a snapshot, then reads the log positions.
///
/// # Errors
///
/// Returns an interruption if the connection is lost.
pub(super) async fn look(session: &mut PgConnection) -> Result<ServerSnapshot, Interruption> {
    let doing = "taking a snapshot";
    // One statement, because its snapshot is taken before any of its functions runs.
    let row = sqlx::query(
        "select pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text,
                pg_current_wal_flush_lsn()::text",
    );
    let row = within(doing, row.fetch_one(session)).await?;
    let text = |at: usize| {
        row.try_get::<String, _>(at)
            .map_err(Interruption::sql(doing))
    };
    let snapshot = text(0)?.parse().map_err(|error| {
        Interruption::Refused(format!(
            "the server returned an unexpected snapshot: {error}"
        ))
    })?;
    Ok(ServerSnapshot {
        snapshot,
        insert: text(1)?.parse().unwrap_or_default(),
        flushed: text(2)?.parse().unwrap_or_default(),
    })
}
