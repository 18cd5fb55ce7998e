//! The publication and the replication slot: makes sure that they are there, and that they are what they must be.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::{
    RelayOptions,
    error::Interruption,
    ledger::{Backlog, Ledger, Saved},
    position::{Identity, Position},
};
use crate::postgres::{
    Lsn,
    replication::{Connection, ReplicationError},
};

/// How often a slot creation that waits says what it waits for.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Name of the slot and of the publication of a relay.
pub(crate) fn slot_name(relay: &str) -> String {
    if relay == "tidings" { relay.to_owned() } else { format!("tidings_{relay}") }
}

/// What the server is, as far as it matters here.
struct Server {
    version: i32,
    wal_level: String,
    in_recovery: bool,
    identity: Identity,
    log_end: Lsn,
}

/// A slot as `pg_replication_slots` shows it.
struct Slot {
    plugin: Option<String>,
    database: Option<String>,
    in_this_database: bool,
    active_pid: Option<i32>,
    wal_status: Option<String>,
}

/// Makes sure that publication and slot exist and fit what is saved; begins anew if nothing is saved. The backlog to publish first, if any.
///
/// # Errors
/// What only a person can put right, or a lost connection.
pub(super) async fn ensure(options: &RelayOptions, ledger: &mut Ledger, saved: Saved) -> Result<Saved, Interruption> {
    let server = server(ledger.session()).await.map_err(Interruption::sql("asking the server what it is"))?;
    require_fit(&server)?;
    ensure_publication(options, ledger.session()).await?;
    let name = slot_name(&options.name);
    let slot = find(ledger.session(), &name).await.map_err(Interruption::sql("looking for the slot"))?;
    if let Some(slot) = &slot {
        require_ours(&name, slot)?;
    }
    if let Some(identity) = &saved.identity
        && *identity != server.identity
    {
        return Err(Interruption::Refused(format!(
            "relay `{}` has a position in another database (system {}, oid {}; this one is system {}, oid {}): if this database was restored or replaced on purpose, delete its row from {}.relay and the relay begins anew, publishing what the outbox holds",
            options.name,
            identity.system_identifier,
            identity.database_oid,
            server.identity.system_identifier,
            server.identity.database_oid,
            options.schema
        )));
    }
    match (slot, saved.position) {
        (Some(slot), Some(position)) => {
            require_valid(&name, &slot)?;
            require_log_up_to(options, &server, position)?;
            end_walsender(ledger.session(), &slot).await?;
            Ok(saved)
        }
        (None, Some(position)) => Err(Interruption::Refused(format!(
            "slot `{name}` is gone, and with it the log after {}: events committed since then may not have been published; delete the row of relay `{}` from {}.relay to begin anew (everything that the outbox still holds is published again)",
            position.commit_lsn, options.name, options.schema
        ))),
        (slot, None) => {
            if let Some(slot) = slot {
                // A start that died between creating the slot and storing the position: the slot is of no use. One in use is not ours:
                // whoever leads this relay has a position.
                if let Some(pid) = slot.active_pid {
                    return Err(Interruption::Refused(format!(
                        "slot `{name}` is in use by process {pid}, but relay `{}` of schema {} has no position yet: a relay of another schema has the same name; give this one another --name (or, if that process is a start of this relay that was killed, end it: select pg_terminate_backend({pid}))",
                        options.name, options.schema
                    )));
                }
                let dropped = sqlx::query("select pg_drop_replication_slot($1)").bind(&name).execute(ledger.session()).await;
                dropped.map_err(Interruption::sql("dropping a slot that no position belongs to"))?;
            }
            let (snapshot, from) = create(options, &name, &server, ledger.session()).await?;
            let backlog = Backlog { snapshot, after: 0 };
            ledger.begin(&server.identity, &backlog, from).await?;
            tracing::info!(slot = name, from = %from, "begins: publishes what the outbox holds, then follows the log");
            Ok(Saved { identity: Some(server.identity), position: Some(Position { commit_lsn: from, ordinal: 0 }), backlog: Some(backlog) })
        }
    }
}

async fn server(session: &mut PgConnection) -> Result<Server, sqlx::Error> {
    let row = sqlx::query(
        "select current_setting('server_version_num')::int as version, current_setting('wal_level') as wal_level, pg_is_in_recovery() as in_recovery,
                case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end::text as log_end,
                (select system_identifier::text from pg_control_system()) as system_identifier,
                (select oid::bigint from pg_database where datname = current_database()) as database_oid",
    );
    let row = row.fetch_one(session).await?;
    let identity = Identity { system_identifier: row.try_get("system_identifier")?, database_oid: row.try_get("database_oid")? };
    let log_end = row.try_get::<String, _>("log_end")?.parse().unwrap_or_default();
    Ok(Server {
        version: row.try_get("version")?,
        wal_level: row.try_get("wal_level")?,
        in_recovery: row.try_get("in_recovery")?,
        identity,
        log_end,
    })
}

fn require_fit(server: &Server) -> Result<(), Interruption> {
    if server.version < 150_000 {
        return Err(Interruption::Refused(format!("Postgres {} is too old: the relay needs 15 or later", server.version / 10_000)));
    }
    if server.in_recovery {
        // Passes by itself when the standby is promoted or the name points to the primary again.
        return Err(Interruption::Standby);
    }
    if server.wal_level != "logical" {
        return Err(Interruption::Refused(format!(
            "wal_level is `{}`: run ALTER SYSTEM SET wal_level = logical and restart Postgres (on a managed service, set rds.logical_replication, cloudsql.logical_decoding or the like)",
            server.wal_level
        )));
    }
    Ok(())
}

async fn ensure_publication(options: &RelayOptions, session: &mut PgConnection) -> Result<(), Interruption> {
    let name = slot_name(&options.name);
    let found = sqlx::query(
        "select p.pubinsert, p.puballtables or exists (
             select from pg_publication_tables t where t.pubname = p.pubname and t.schemaname = $2 and t.tablename = 'outbox' and t.rowfilter is null
         ) as has_outbox from pg_publication p where p.pubname = $1",
    );
    let found = found.bind(&name).bind(&options.schema).fetch_optional(&mut *session).await;
    match found.and_then(|row| row.map(|row| Ok((row.try_get::<bool, _>("pubinsert")?, row.try_get::<bool, _>("has_outbox")?))).transpose())
    {
        Err(error) => Err(Interruption::sql("looking for the publication")(error)),
        Ok(Some((true, true))) => Ok(()),
        Ok(Some((inserts, _))) => Err(Interruption::Refused(format!(
            "publication `{name}` {}",
            if inserts {
                "does not contain this outbox, or not all of its rows: a relay of another schema may have the same name (give this one another --name); if nobody uses the publication, drop it and let the relay create it"
            } else {
                "leaves inserts out: run ALTER PUBLICATION … SET (publish = 'insert'), or drop it and let the relay create it"
            },
        ))),
        Ok(None) => {
            let sql = format!("create publication \"{name}\" for table \"{}\".outbox with (publish = 'insert')", options.schema);
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(session).await.map_err(Interruption::sql("creating the publication"))?;
            Ok(())
        }
    }
}

async fn find(session: &mut PgConnection, name: &str) -> Result<Option<Slot>, sqlx::Error> {
    let row = sqlx::query(
        "select plugin::text, database::text, coalesce(database = current_database(), false) as ours, active_pid, wal_status from pg_replication_slots where slot_name = $1",
    );
    let Some(row) = row.bind(name).fetch_optional(session).await? else { return Ok(None) };
    let slot = Slot {
        plugin: row.try_get("plugin")?,
        database: row.try_get("database")?,
        in_this_database: row.try_get("ours")?,
        active_pid: row.try_get("active_pid")?,
        wal_status: row.try_get("wal_status")?,
    };
    Ok(Some(slot))
}

/// Slots belong to the whole server, names of relays to one database: another database's relay may have the same name.
fn require_ours(name: &str, slot: &Slot) -> Result<(), Interruption> {
    if slot.plugin.as_deref() == Some("pgoutput") && slot.in_this_database {
        return Ok(());
    }
    Err(Interruption::Refused(format!(
        "slot `{name}` belongs to somebody else (plugin {}, database {}); slots are shared by all databases of a server: give this relay another --name",
        slot.plugin.as_deref().unwrap_or("none"),
        slot.database.as_deref().unwrap_or("none"),
    )))
}

/// A server whose log ends before the relay's position has lost commits (a fail-over, a restore): events published since then would be
/// skipped, because their positions are taken.
fn require_log_up_to(options: &RelayOptions, server: &Server, position: Position) -> Result<(), Interruption> {
    if server.log_end >= position.commit_lsn {
        return Ok(());
    }
    Err(Interruption::Refused(format!(
        "the server's log ends at {}, before the position of relay `{}` ({}): commits that were published are lost here; delete the relay's row from {}.relay and drop its slot to begin anew (everything that the outbox holds is published again)",
        server.log_end, options.name, position.commit_lsn, options.schema
    )))
}

fn require_valid(name: &str, slot: &Slot) -> Result<(), Interruption> {
    if slot.wal_status.as_deref() != Some("lost") {
        return Ok(());
    }
    Err(Interruption::Refused(format!(
        "slot `{name}` was invalidated: it needed more log than max_slot_wal_keep_size allows; drop it (select pg_drop_replication_slot('{name}')) and begin anew by deleting the relay's row"
    )))
}

/// Ends the walsender of an earlier leader: whoever holds the lease owns the slot.
async fn end_walsender(session: &mut PgConnection, slot: &Slot) -> Result<(), Interruption> {
    let Some(pid) = slot.active_pid else { return Ok(()) };
    tracing::info!(pid, "ends the walsender of an earlier leader");
    let ended = sqlx::query("select pg_terminate_backend($1, 5000)").bind(pid).execute(session).await;
    ended.map_err(Interruption::sql("ending the walsender of an earlier leader")).map(|_| ())
}

/// Bytes of log that the server keeps for a slot: what is not confirmed, and all of it. `None` without such a slot.
///
/// # Errors
/// A lost connection.
pub(super) async fn log_kept(session: &mut PgConnection, relay: &str) -> Result<Option<(i64, i64)>, Interruption> {
    let kept = sqlx::query_as(
        "select coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn), 0)::bigint, coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint
         from pg_replication_slots where slot_name = $1",
    );
    kept.bind(slot_name(relay)).fetch_optional(session).await.map_err(Interruption::sql("looking at the slot"))
}

/// Creates the slot. The snapshot of the rows that are not in its stream, and where its stream starts: the exact seam.
async fn create(options: &RelayOptions, name: &str, server: &Server, ask: &mut PgConnection) -> Result<(String, Lsn), Interruption> {
    let doing = "creating the slot";
    let application = options.database.application_name("relay slot");
    let mut connection =
        Connection::open(&options.database, &application).await.map_err(Interruption::replication("connecting for replication"))?;
    let foreign = format!(
        "SELECT EXISTS (SELECT FROM \"{}\".outbox WHERE xid >= greatest(pg_snapshot_xmin(pg_current_snapshot()), pg_snapshot_xmax(pg_current_snapshot())))",
        options.schema
    );
    // A failover slot (17 and later) is carried over to a standby that asks for it.
    let failover = if server.version >= 170_000 { ", FAILOVER true" } else { "" };
    let work = async {
        connection.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let created = connection.query(&format!("CREATE_REPLICATION_SLOT \"{name}\" LOGICAL pgoutput (SNAPSHOT 'use'{failover})")).await?;
        let snapshot = connection.query("SELECT pg_current_snapshot()::text").await?;
        let foreign = connection.query(&foreign).await?;
        connection.query("COMMIT").await?;
        let cell = |rows: Vec<Vec<Option<String>>>, at: usize| rows.into_iter().next().and_then(|row| row.into_iter().nth(at).flatten());
        let point = cell(created, 1).and_then(|text| text.parse::<Lsn>().ok());
        let answer = cell(snapshot, 0).map(|text| well_formed(&text)).zip(point);
        let (snapshot, point) =
            answer.ok_or_else(|| ReplicationError::Protocol("CREATE_REPLICATION_SLOT did not say where it starts".into()))?;
        Ok((snapshot, point, cell(foreign, 0).is_some_and(|found| found == "t")))
    };
    let mut work = std::pin::pin!(work);
    let (snapshot, point, foreign) = loop {
        tokio::select! {
            created = &mut work => break created.map_err(Interruption::replication(doing))?,
            () = tokio::time::sleep(SAY_EVERY) => say_what_blocks(ask).await,
        }
    };
    if foreign {
        return Err(Interruption::Refused(format!(
            "the outbox holds rows of transactions that this server has not had yet (column xid): it was restored from a dump, or copied; run update {}.outbox set xid = pg_current_xact_id() to have them published (again, if they were before), or delete them",
            options.schema
        )));
    }
    Ok((snapshot, point))
}

/// The snapshot as `pg_snapshot` accepts it.
///
/// The one that a new slot exports may have an xmin above its xmax (`13929:13928:`), which the server writes and then refuses
/// to read. It tests xmin first, so every transaction below xmin is finished: the same snapshot has its xmax raised to xmin.
fn well_formed(snapshot: &str) -> String {
    let mut parts = snapshot.splitn(3, ':');
    let (xmin, xmax, in_progress) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    match (xmin.parse::<u64>(), xmax.parse::<u64>()) {
        (Ok(low), Ok(high)) if low > high => format!("{low}:{low}:"),
        _ => format!("{xmin}:{xmax}:{in_progress}"),
    }
}

/// A slot waits for every transaction that was writing when it was asked for; statement_timeout does not end that wait.
async fn say_what_blocks(session: &mut PgConnection) {
    let sql = "select pid, coalesce(usename, '?')::text as role, coalesce(application_name, '')::text as application, (now() - xact_start)::text as age
               from pg_stat_activity where backend_xid is not null and pid <> pg_backend_pid() order by xact_start limit 5";
    let Ok(rows) = sqlx::query(sql).fetch_all(session).await else { return };
    for row in rows {
        let text = |column: &str| row.try_get::<String, _>(column).unwrap_or_default();
        let pid: i32 = row.try_get("pid").unwrap_or_default();
        tracing::warn!(
            pid,
            role = text("role"),
            application = text("application"),
            open_for = text("age"),
            "the slot waits for this open transaction; end it, or select pg_terminate_backend(pid)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_that_the_server_would_not_read_back_is_put_right() {
        assert_eq!(well_formed("13929:13928:"), "13929:13929:");
        assert_eq!(well_formed("10:20:10,14,15"), "10:20:10,14,15");
    }
}
