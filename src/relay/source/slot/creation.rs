//! Creation of the slot, with or without a snapshot of the commits before it.

use tokio::task::JoinHandle;

use super::aside;
use crate::{
    postgres::{Lsn, replication::Connection},
    relay::{
        RelayOptions,
        error::Interruption,
        position::Snapshot,
        source::long_query::watched,
        startup::{names::LogNames, server::Server},
    },
    task::OwnedTask,
};

/// Log line for each transaction that the creation of a slot waits for.
const SLOT_WAITS: &str =
    "the slot waits for this open transaction; end it, or select pg_terminate_backend(pid)";

/// A new slot, and a snapshot that sees exactly the commits before the slot's start. The snapshot
/// is valid while the connection is open.
pub(crate) struct Seam {
    pub(crate) connection: Connection,
    pub(crate) snapshot: Snapshot,
    /// The snapshot's name for import by other sessions.
    pub(crate) exported: String,
    pub(crate) from: Lsn,
}

/// Creates the slot in a session of its own. The creation waits for every transaction that was
/// writing at the request, and `statement_timeout` does not end this wait.
pub(crate) fn make(
    options: &RelayOptions,
    names: &LogNames,
    server: &Server,
) -> JoinHandle<Result<(), Interruption>> {
    // A failover slot (PostgreSQL 17 and later) is synchronized to the standbys that request it.
    let failover = if server.version >= 170_000 {
        ", failover => true"
    } else {
        ""
    };
    let sql = format!(
        "select lsn::text from pg_create_logical_replication_slot($1, 'pgoutput'{failover})"
    );
    aside(
        options.clone(),
        names.slot.clone(),
        "creating the slot",
        sql,
        Some(SLOT_WAITS),
    )
}

/// Creates the slot together with a snapshot of the commits before it. Waits as [`make`] does.
/// Dropping the task closes its connections.
pub(crate) fn make_exporting(
    options: &RelayOptions,
    names: &LogNames,
    server: &Server,
) -> OwnedTask<Result<Seam, Interruption>> {
    let failover = if server.version >= 170_000 {
        ", FAILOVER true"
    } else {
        ""
    };
    let create = format!(
        "CREATE_REPLICATION_SLOT \"{}\" LOGICAL pgoutput (SNAPSHOT 'use'{failover})",
        names.slot
    );
    let options = options.clone();
    OwnedTask::spawn(async move { export(&options, &create).await })
}

async fn export(options: &RelayOptions, create: &str) -> Result<Seam, Interruption> {
    let doing = "creating the slot";
    let application = options.database.application_name("relay slot");
    let mut connection = Connection::open(&options.database, &application)
        .await
        .map_err(Interruption::ConnectingForReplication)?;
    let failed = || Interruption::replication(doing);
    let backend = connection
        .query("SELECT pg_catalog.pg_backend_pid()")
        .await
        .map_err(failed())?;
    let backend = backend
        .first()
        .and_then(|row| row.first()?.as_ref()?.parse().ok())
        .unwrap_or_default();
    connection
        .query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await
        .map_err(failed())?;
    let creating = async { connection.query_unbounded(create).await.map_err(failed()) };
    let mut rows = watched(options, doing, backend, creating, Some(SLOT_WAITS)).await?;
    rows.extend(
        connection
            .query("SELECT pg_current_snapshot()::text, pg_export_snapshot()")
            .await
            .map_err(failed())?,
    );
    let text = |row: usize, column: usize| {
        rows.get(row)
            .and_then(|row: &Vec<Option<String>>| row.get(column)?.clone())
            .unwrap_or_default()
    };
    // slot_name, consistent_point, snapshot_name, output_plugin.
    let (from, snapshot, exported) = (text(0, 1).parse(), text(1, 0).parse(), text(1, 1));
    match (from, snapshot) {
        (Ok(from), Ok(snapshot)) => Ok(Seam {
            connection,
            snapshot,
            exported,
            from,
        }),
        _ => Err(Interruption::Refused(format!(
            "the server returned an unexpected description of the new slot: {rows:?}"
        ))),
    }
}
