//! What the database is, and whether a relay may work on it: asked at each start, refused with the remedy.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::{
    RelayOptions,
    error::Interruption,
    ledger::within,
    position::{Change, Identity, Position},
};
use crate::postgres::{Lsn, replication::Connection};

/// What the server is, as far as it matters here.
pub(super) struct Server {
    pub(super) version: i32,
    pub(super) logical: bool,
    pub(super) wal_level: String,
    pub(super) identity: Identity,
    insert: Lsn,
}

/// Asks the server what it is; refuses one that cannot serve a relay at all.
///
/// # Errors
/// [`Interruption::Standby`] on a standby; a refusal with the remedy; a lost connection.
pub(super) async fn examine(options: &RelayOptions, session: &mut PgConnection) -> Result<Server, Interruption> {
    let asking = "asking the server what it is";
    let recovering = sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(&mut *session);
    if within(asking, recovering).await? {
        // Passes by itself when the standby is promoted or the name points to the primary again. Its snapshots do not list what is in
        // progress, so its table must not be polled either.
        return Err(Interruption::Standby);
    }
    let row = sqlx::query(
        "select current_setting('server_version_num')::int as version, current_setting('wal_level') as wal_level,
                pg_current_wal_insert_lsn()::text as insert",
    );
    let row = within(asking, row.fetch_one(&mut *session)).await?;
    let identity = within(asking, identity(session)).await?;
    let read = || -> Result<_, sqlx::Error> {
        let wal_level: String = row.try_get("wal_level")?;
        let insert = row.try_get::<String, _>("insert")?.parse().unwrap_or_default();
        Ok(Server { version: row.try_get("version")?, logical: wal_level == "logical", wal_level, identity, insert })
    };
    let server = read().map_err(Interruption::sql(asking))?;
    if server.version < 150_000 {
        return Err(Interruption::Refused(format!("Postgres {} is too old: the relay needs 15 or later", server.version / 10_000)));
    }
    require_readable(options, session).await?;
    Ok(server)
}

/// Which database this is.
///
/// # Errors
/// When it cannot be asked.
pub(super) async fn identity(session: &mut PgConnection) -> Result<Identity, sqlx::Error> {
    let row = sqlx::query(
        "select ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int::bigint as timeline,
                (select system_identifier::text from pg_control_system()) as system_identifier,
                (select oid::bigint from pg_database where datname = current_database()) as database_oid",
    );
    let row = row.fetch_one(session).await?;
    Ok(Identity { system: row.try_get("system_identifier")?, database: row.try_get("database_oid")?, timeline: row.try_get("timeline")? })
}

/// The table is read by snapshots: every row must be visible to the relay, and each session must draw its numbers in order.
async fn require_readable(options: &RelayOptions, session: &mut PgConnection) -> Result<(), Interruption> {
    let table = options.quoted_table();
    let row = sqlx::query(
        "select row_security_active(o.oid) as hidden, coalesce(s.seqcache, 1) as cache, coalesce(s.seqrelid::regclass::text, '?') as sequence
         from (select $1::regclass::oid as oid) o
         left join pg_attribute a on a.attrelid = o.oid and a.attname = 'seq' and not a.attisdropped
         left join pg_sequence s on s.seqrelid = pg_get_serial_sequence($1, a.attname)::regclass",
    );
    let doing = "looking at the outbox";
    let row = within(doing, row.bind(&table).fetch_one(&mut *session)).await?;
    let (hidden, cache): (bool, i64) =
        row.try_get("hidden").and_then(|hidden| Ok((hidden, row.try_get("cache")?))).map_err(Interruption::sql(doing))?;
    // A Debezium table may be read without its transactions.
    let by_transaction = options.debezium.is_none();
    let foreign = format!("select exists (select from {table} where xid >= pg_snapshot_xmax(pg_current_snapshot()))");
    if by_transaction && within(doing, sqlx::query_scalar(AssertSqlSafe(foreign)).fetch_one(&mut *session)).await? {
        return Err(Interruption::Refused(format!(
            "the outbox holds rows of transactions that this server has not had yet (column xid): it was restored from a dump, or copied; run update {table} set xid = pg_current_xact_id() to have them published (again, if they were before), or delete them"
        )));
    }
    if hidden {
        return Err(Interruption::Refused(format!(
            "row level security hides rows of {table} from the relay's role: give the role BYPASSRLS, or run alter table {table} disable row level security"
        )));
    }
    if by_transaction {
        require_own_transactions(session, &options.schema).await?;
    }
    if cache != 1 {
        let sequence: String = row.try_get("sequence").map_err(Interruption::sql(doing))?;
        return Err(Interruption::Refused(format!(
            "the sequence {sequence} hands out {cache} numbers at once, so events of one aggregate may be numbered out of order: run alter sequence {sequence} cache 1"
        )));
    }
    Ok(())
}

/// Whether each row is inserted with the number of its own transaction. By any other number a relay that reads the table may not
/// find it. After a restore with
/// `--disable-triggers`, for instance, the trigger is enabled for ordinary sessions only.
///
/// # Errors
/// A refusal with the statements that put the trigger and the rows right.
pub(super) async fn require_own_transactions(session: &mut PgConnection, schema: &str) -> Result<(), Interruption> {
    let sql = "select exists (select from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
               where n.nspname = $1 and c.relname = 'outbox' and t.tgname = 'outbox_own_transaction' and t.tgenabled = 'A')";
    if within("looking at the outbox", sqlx::query_scalar(sql).bind(schema).fetch_one(session)).await? {
        return Ok(());
    }
    Err(Interruption::Refused(format!(
        "the trigger outbox_own_transaction of {schema}.outbox is not enabled for every session (a restore with --disable-triggers leaves it so): \
         rows that were inserted meanwhile may bear the numbers of other transactions, and a relay may not find them. Run: \
         alter table {schema}.outbox enable always trigger outbox_own_transaction; \
         update {schema}.outbox set xid = pg_current_xact_id() where xmin::text <> (xid::text::numeric % 4294967296)::text; \
         the relay then publishes these rows (again, if they were inserted within a savepoint and published before). If the trigger was dropped: \
         create trigger outbox_own_transaction before insert on {schema}.outbox for each row \
         when (new.xid is distinct from pg_current_xact_id()) execute function {schema}.own_transaction(), first"
    )))
}

/// Whether this is the database that the position belongs to, with all that was published still in it.
///
/// # Errors
/// A refusal that says what is different and what to do.
pub(super) async fn require_same(
    options: &RelayOptions,
    session: &mut PgConnection,
    server: &Server,
    identity: &Identity,
    position: &Position,
) -> Result<(), Interruption> {
    let name = &options.name;
    match identity.change(&server.identity) {
        Change::Database => {
            return Err(Interruption::Refused(format!(
                "relay `{name}` has a position in another database (system {}, oid {}; this one is system {}, oid {}): if this database was restored or replaced on purpose, run `tidings relay rewind --all --name {name}` to publish everything that its outbox holds, or `tidings relay skip --all --name {name}` to publish only what comes from now on",
                identity.system, identity.database, server.identity.system, server.identity.database
            )));
        }
        Change::Timeline => require_promoted_after(options, server, identity, position).await?,
        Change::None => {}
    }
    if server.insert < position.reach {
        return Err(lost_commits(
            options,
            &format!("its log ends at {}, before {}, where the last published event was", server.insert, position.reach),
        ));
    }
    // The rows of somebody else's table are not ours to keep.
    let Some(witness) = position.witness.filter(|_| options.debezium.is_none()) else { return Ok(()) };
    let sql = format!("select exists (select from \"{}\".outbox where seq = $1 and id = $2 and xid = $3::text::xid8)", options.schema);
    let there = sqlx::query_scalar(AssertSqlSafe(sql)).bind(witness.seq).bind(witness.id).bind(witness.xid.to_string()).fetch_one(session);
    if within("looking for the last published event", there).await? {
        return Ok(());
    }
    Err(lost_commits(
        options,
        &format!(
            "event {} (seq {}), the last one published, is not in the outbox (if somebody deleted it by hand, nothing is lost)",
            witness.id, witness.seq
        ),
    ))
}

/// A promoted standby has everything that was published if its timeline left the old one after that.
async fn require_promoted_after(
    options: &RelayOptions,
    server: &Server,
    identity: &Identity,
    position: &Position,
) -> Result<(), Interruption> {
    let (old, new) = (identity.timeline, server.identity.timeline);
    let history = async {
        let mut connection = Connection::open(&options.database, &options.database.application_name("relay history")).await?;
        connection.query(&format!("TIMELINE_HISTORY {new}")).await
    };
    let switch = match history.await {
        Ok(rows) => rows.into_iter().next().and_then(|row| row.into_iter().nth(1).flatten()).and_then(|text| left_at(&text, old)),
        Err(error) => {
            tracing::warn!(
                "the timeline's history cannot be read ({error}): whether the fail-over lost commits is judged by the last published event alone"
            );
            return Ok(());
        }
    };
    match switch {
        Some(switch) if switch >= position.reach => {
            tracing::warn!(old, new, at = %switch, "the database was promoted to a new timeline after everything that was published: goes on");
            Ok(())
        }
        Some(switch) => Err(lost_commits(
            options,
            &format!("timeline {new} left timeline {old} at {switch}, before {}, where the last published event was", position.reach),
        )),
        None => Err(lost_commits(options, &format!("timeline {new} does not descend from timeline {old}, in which it published"))),
    }
}

/// Where a timeline was left, out of a history file (`timeline TAB lsn TAB reason`, a line each).
fn left_at(history: &str, timeline: i64) -> Option<Lsn> {
    history.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()?.parse::<i64>().ok()? == timeline).then(|| words.next()?.parse().ok()).flatten()
    })
}

fn lost_commits(options: &RelayOptions, evidence: &str) -> Interruption {
    let name = &options.name;
    Interruption::Refused(format!(
        "the database of relay `{name}` has lost commits that were published (a fail-over, or a restore): {evidence}. Consumers may have seen events that do not exist any more. `tidings relay rewind --all --name {name}` publishes everything that the outbox holds once more, `tidings relay rewind --since TIME` what is younger; `tidings relay skip --all --name {name}` goes on with what comes from now on (each has --dry-run)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_tells_where_a_timeline_was_left() {
        let history = "1\t0/5000140\tno recovery target specified\n\n2\t1/A0\tbefore 2026\n";
        assert_eq!(left_at(history, 1), Some(Lsn(0x0500_0140)));
        assert_eq!(left_at(history, 2), Some(Lsn(0x1_0000_00A0)));
        assert_eq!(left_at(history, 3), None);
    }
}
