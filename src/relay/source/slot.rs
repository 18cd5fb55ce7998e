//! The publication and the replication slot of the outbox: creation, state, advance and removal.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use tokio::task::JoinHandle;

use super::long_query::{backend, watched};
use crate::{
    postgres::{Lsn, replication::Connection},
    relay::{
        RelayOptions,
        error::Interruption,
        leadership::relay_store::{connect, within},
        position::Snapshot,
        startup::{names::LogNames, server::Server},
    },
};

/// Log line for each transaction that the creation of a slot waits for.
const SLOT_WAITS: &str =
    "the slot waits for this open transaction; end it, or select pg_terminate_backend(pid)";

/// State of the slot for a relay that can also read the table.
pub(crate) enum Log {
    /// The slot streams every commit from here on.
    From(Lsn),
    /// No slot is usable.
    None,
}

/// State of the slot for a relay that reads only the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// The slot keeps every commit from here on.
    From(Lsn),
    /// The slot exists and cannot be read.
    Unreadable,
    /// There is no slot.
    None,
}

/// A new slot, and a snapshot that sees exactly the commits before the slot's start. The snapshot
/// is valid while the connection is open.
pub(crate) struct Seam {
    pub(crate) connection: Connection,
    pub(crate) snapshot: Snapshot,
    /// The snapshot's name for import by other sessions.
    pub(crate) exported: String,
    pub(crate) from: Lsn,
}

/// A row of `pg_replication_slots`.
struct Slot {
    plugin: Option<String>,
    database: Option<String>,
    in_this_database: bool,
    active_pid: Option<i32>,
    usable: bool,
    wal_status: Option<String>,
    confirmed: Option<Lsn>,
}

/// Ensures that the publication exists, and examines the slot. Drops a slot that was invalidated,
/// or whose log could not be decoded (`unusable`). Ends the walsender of an earlier leader.
///
/// # Errors
///
/// Returns an interruption if only an operator can correct the fault, or if the connection is lost.
pub(crate) async fn examine(
    options: &RelayOptions,
    names: &LogNames,
    session: &mut PgConnection,
    unusable: bool,
) -> Result<Log, Interruption> {
    ensure_publication(options, &names.publication, session).await?;
    let name = &names.slot;
    let Some(slot) = find(session, name).await? else {
        return Ok(Log::None);
    };
    require_ours(name, &slot)?;
    end_walsender(session, &slot).await?;
    match slot.confirmed.filter(|_| slot.usable && !unusable) {
        Some(confirmed) => Ok(Log::From(confirmed)),
        None => {
            tracing::warn!(
                slot = name,
                "the slot cannot be read any more (invalidated, or its publication was dropped): \
                 it is created again"
            );
            drop_slot(session, name).await?;
            Ok(Log::None)
        }
    }
}

/// Ensures that the publication exists, and examines the slot without dropping it.
///
/// # Errors
///
/// Returns an interruption if only an operator can correct the fault, or if the connection is lost.
pub(crate) async fn kept(
    options: &RelayOptions,
    names: &LogNames,
    session: &mut PgConnection,
) -> Result<Kept, Interruption> {
    ensure_publication(options, &names.publication, session).await?;
    let Some(slot) = find(session, &names.slot).await? else {
        return Ok(Kept::None);
    };
    require_ours(&names.slot, &slot)?;
    end_walsender(session, &slot).await?;
    Ok(slot
        .confirmed
        .filter(|_| slot.usable)
        .map_or(Kept::Unreadable, Kept::From))
}

/// Drops the relay's slot: a relay that reads only the table must not keep the server's log. A slot
/// of this name that belongs to another database or plugin is kept.
///
/// # Errors
///
/// Returns an interruption if the connection is lost.
pub(crate) async fn forget(
    names: &LogNames,
    session: &mut PgConnection,
) -> Result<(), Interruption> {
    let name = &names.slot;
    let Some(slot) = find(session, name).await? else {
        return Ok(());
    };
    if require_ours(name, &slot).is_err() {
        return Ok(());
    }
    end_walsender(session, &slot).await?;
    tracing::info!(slot = name, "drops the slot");
    drop_slot(session, name).await
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
pub(crate) fn make_exporting(
    options: &RelayOptions,
    names: &LogNames,
    server: &Server,
) -> JoinHandle<Result<Seam, Interruption>> {
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
    tokio::spawn(async move { export(&options, &create).await })
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

/// Advances the slot to `to` without decoding the log, because everything before `to` is published.
pub(crate) fn advance(
    options: &RelayOptions,
    names: &LogNames,
    to: Lsn,
) -> JoinHandle<Result<(), Interruption>> {
    let sql = format!("select end_lsn::text from pg_replication_slot_advance($1, '{to}')");
    aside(
        options.clone(),
        names.slot.clone(),
        "advancing the slot",
        sql,
        None,
    )
}

fn aside(
    options: RelayOptions,
    name: String,
    doing: &'static str,
    sql: String,
    blocked: Option<&'static str>,
) -> JoinHandle<Result<(), Interruption>> {
    tokio::spawn(async move {
        let mut session = connect(&options, "relay slot").await?;
        let backend = backend(&mut session).await?;
        let work = async {
            sqlx::query(AssertSqlSafe(sql))
                .bind(name)
                .execute(&mut session)
                .await
                .map_err(Interruption::sql(doing))
        };
        watched(&options, doing, backend, work, blocked)
            .await
            .map(|_| ())
    })
}

/// Returns `true` if the publication exists and fits the outbox.
///
/// # Errors
///
/// Returns an interruption with the remedy if the publication does not fit, or an interruption if
/// the connection is lost.
pub(crate) async fn fit_publication(
    options: &RelayOptions,
    name: &str,
    session: &mut PgConnection,
) -> Result<bool, Interruption> {
    let doing = "looking for the publication";
    let (schema, table) = options.table();
    let found = sqlx::query_as(
        "select p.pubinsert,
                p.puballtables or coalesce(bool_or(t.ours and t.rowfilter is null), false),
                coalesce(bool_or(not t.ours), false)
         from pg_publication p
         left join lateral (
             select t.schemaname = $2 and t.tablename = $3 as ours, t.rowfilter
             from pg_publication_tables t where t.pubname = p.pubname
         ) t on true
         where p.pubname = $1 group by p.oid, p.pubinsert, p.puballtables",
    );
    let found = found
        .bind(name)
        .bind(schema)
        .bind(table)
        .fetch_optional(session);
    let found: Option<(bool, bool, bool)> = within(doing, found).await?;
    match found {
        Some((true, true, _)) => Ok(true),
        Some((_, false, true)) => Err(Interruption::Refused(format!(
            "publication `{name}` does not contain this outbox, or not all of its rows: a relay \
             of another schema may have the same name (give this one another --name); if the \
             publication is not in use, drop it and let the relay create it"
        ))),
        Some((inserts, _, _)) => Err(Interruption::PublicationUnfit(format!(
            "publication `{name}` {}; or drop it and let the relay create it",
            if inserts {
                format!(
                    "does not contain the outbox, or not all of its rows: run ALTER PUBLICATION \
                     \"{name}\" SET TABLE {}",
                    options.quoted_table()
                )
            } else {
                format!(
                    "leaves inserts out: run ALTER PUBLICATION \"{name}\" SET (publish = 'insert')"
                )
            },
        ))),
        None if options.configured_publication().is_some() => Err(Interruption::Refused(format!(
            "there is no publication `{name}` (outbox.publication): name the one that the \
             connector uses, or remove the key and let the relay create its own"
        ))),
        None => Ok(false),
    }
}

async fn ensure_publication(
    options: &RelayOptions,
    name: &str,
    session: &mut PgConnection,
) -> Result<(), Interruption> {
    if fit_publication(options, name, session).await? {
        return Ok(());
    }
    let sql = format!(
        "create publication \"{}\" for table {} with (publish = 'insert')",
        name.replace('"', "\"\""),
        options.quoted_table()
    );
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(session)
        .await
        .map_err(Interruption::sql("creating the publication"))?;
    Ok(())
}

/// State of a slot.
pub(crate) struct State {
    /// The server still has the log that the slot reads.
    pub(crate) usable: bool,
    pub(crate) wal_status: String,
}

/// Returns the state of the slot without changing it. Returns `None` if there is no slot of this
/// name.
///
/// # Errors
///
/// Returns an interruption with the remedy if the slot belongs to another database or plugin, or an
/// interruption if the connection is lost.
pub(crate) async fn look(
    name: &str,
    session: &mut PgConnection,
) -> Result<Option<State>, Interruption> {
    let Some(slot) = find(session, name).await? else {
        return Ok(None);
    };
    require_ours(name, &slot)?;
    Ok(Some(State {
        usable: slot.usable,
        wal_status: slot.wal_status.unwrap_or_else(|| "unknown".into()),
    }))
}

async fn find(session: &mut PgConnection, name: &str) -> Result<Option<Slot>, Interruption> {
    let doing = "looking for the slot";
    let row = sqlx::query(
        "select plugin::text, database::text, active_pid, wal_status,
                coalesce(database = current_database(), false) as ours,
                coalesce(wal_status, 'lost') <> 'lost'
                and to_jsonb(s) ->> 'invalidation_reason' is null as usable,
                confirmed_flush_lsn::text as confirmed
         from pg_replication_slots s where slot_name = $1",
    );
    let Some(row) = within(doing, row.bind(name).fetch_optional(session)).await? else {
        return Ok(None);
    };
    let read = || -> Result<_, sqlx::Error> {
        Ok(Slot {
            plugin: row.try_get("plugin")?,
            database: row.try_get("database")?,
            in_this_database: row.try_get("ours")?,
            active_pid: row.try_get("active_pid")?,
            usable: row.try_get("usable")?,
            wal_status: row.try_get("wal_status")?,
            confirmed: row
                .try_get::<Option<String>, _>("confirmed")?
                .and_then(|text| text.parse().ok()),
        })
    };
    read().map(Some).map_err(Interruption::sql(doing))
}

async fn drop_slot(session: &mut PgConnection, name: &str) -> Result<(), Interruption> {
    // Selects from the view, because a slot whose creation was interrupted vanishes by itself.
    let dropped = sqlx::query(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1",
    )
    .bind(name)
    .execute(session);
    within("dropping a slot that cannot be used", dropped)
        .await
        .map(|_| ())
}

/// Refuses a slot of another database or plugin. All databases of a server share the names of
/// slots. The slot of another database's relay has another mark in its name, so only a slot that
/// was created by hand can have this name.
fn require_ours(name: &str, slot: &Slot) -> Result<(), Interruption> {
    if slot.plugin.as_deref() == Some("pgoutput") && slot.in_this_database {
        return Ok(());
    }
    Err(Interruption::Refused(format!(
        "slot `{name}` belongs to another database or plugin (plugin {}, database {}), and slots \
         are shared by all databases of a server: give this relay another --name",
        slot.plugin.as_deref().unwrap_or("none"),
        slot.database.as_deref().unwrap_or("none"),
    )))
}

/// Ends the walsender of an earlier leader, because the slot belongs to the holder of the lease.
async fn end_walsender(session: &mut PgConnection, slot: &Slot) -> Result<(), Interruption> {
    let Some(pid) = slot.active_pid else {
        return Ok(());
    };
    tracing::info!(pid, "ends the walsender of an earlier leader");
    let ended = sqlx::query("select pg_terminate_backend($1, 5000)")
        .bind(pid)
        .execute(session);
    within("ending the walsender of an earlier leader", ended)
        .await
        .map(|_| ())
}

/// Returns the numbers of bytes of log that the server keeps for a slot: those that are not
/// confirmed, and all of them. Returns `None` if there is no such slot.
///
/// # Errors
///
/// Returns an interruption if the connection is lost.
pub(crate) async fn log_kept(
    session: &mut PgConnection,
    slot: &str,
) -> Result<Option<(i64, i64)>, Interruption> {
    let kept = sqlx::query_as(
        "select coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn), 0)::bigint,
                coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint
         from pg_replication_slots where slot_name = $1",
    );
    within(
        "examining the slot",
        kept.bind(slot).fetch_optional(session),
    )
    .await
}

/// Returns the end of the server's log.
///
/// # Errors
///
/// Returns an interruption if the connection is lost.
pub(crate) async fn insert_position(session: &mut PgConnection) -> Result<Lsn, Interruption> {
    let insert = sqlx::query_scalar::<_, String>("select pg_current_wal_insert_lsn()::text")
        .fetch_one(session);
    Ok(within("reading the end of the log", insert)
        .await?
        .parse()
        .unwrap_or_default())
}
