//! The replication slot of the outbox: creation, state, advance and removal.

mod creation;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use tokio::task::JoinHandle;

pub(crate) use self::creation::{make, make_exporting};
use super::{
    long_query::{backend, watched},
    publication::ensure_publication,
};
use crate::{
    postgres::Lsn,
    relay::{
        RelayOptions,
        error::Interruption,
        leadership::relay_store::{connect, within},
        startup::names::LogNames,
    },
};

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

/// Runs a statement on the slot in a session of its own, because it may wait for other
/// transactions.
#[expect(
    clippy::disallowed_methods,
    reason = "ends with its statement, which has a limit; an aborted one would go on in the server"
)]
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
