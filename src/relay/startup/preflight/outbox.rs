//! Conditions of the table that events are read from.

use sqlx::{AssertSqlSafe, PgConnection};

use super::{Conditions, facts::Facts};
use crate::relay::{RelayOptions, error::Interruption, leadership::relay_store::within};

/// Column, the types that it may have, and the one that a migration gives it.
const COLUMNS: &[(&str, &[&str], &str)] = &[
    ("seq", &["bigint"], "bigint"),
    ("id", &["uuid"], "uuid"),
    ("aggregatetype", TEXT, "text"),
    ("aggregateid", TEXT, "text"),
    ("type", TEXT, "text"),
    ("version", &["integer"], "int"),
    (
        "payload",
        &["json", "jsonb", "text", "character varying"],
        "json",
    ),
    ("payload_bytes", &["bytea"], "bytea"),
    (
        "headers",
        &["jsonb", "json", "text", "character varying"],
        "jsonb",
    ),
    (
        "occurred_at",
        &["timestamp with time zone", "timestamp without time zone"],
        "timestamptz",
    ),
    ("topic", TEXT, "text"),
    ("xid", &["xid8"], "xid8"),
];

/// Types whose values are sent as their characters.
const TEXT: &[&str] = &[
    "text",
    "character varying",
    "character",
    "name",
    "citext",
    "public.citext",
];

/// Adds the conditions that facts decide.
pub(super) fn judge(facts: &Facts, options: &RelayOptions, conditions: &mut Conditions) {
    if !facts.outbox_exists {
        return;
    }
    let before = conditions.0.len();
    if options.debezium.is_none() {
        shape(facts, options, conditions);
        own_transactions(facts, options, conditions);
    }
    storage(facts, options, conditions);
    visibility(facts, conditions);
    numbers(facts, conditions);
    triggers(facts, options, conditions);
    if conditions.0.len() == before {
        conditions.met(
            "outbox",
            format!(
                "{}, {} columns",
                options.quoted_table(),
                facts.outbox_columns.len()
            ),
        );
    }
}

/// It is a plain table with the columns of the migrations.
fn shape(facts: &Facts, options: &RelayOptions, conditions: &mut Conditions) {
    let table = options.quoted_table();
    let what = match facts.outbox_kind.as_deref() {
        Some("r") if facts.outbox_has_children => {
            "has child tables, whose rows the log has under other names"
        }
        Some("r") => return columns(facts, &table, conditions),
        Some("p") => "is partitioned, and the log has the rows of a partition under another name",
        Some("v" | "m") => "is a view, and the log has no rows of a view",
        Some("f") => "is a foreign table, and the log has no rows of one",
        _ => "is no plain table",
    };
    conditions.refuse(
        "outbox",
        format!("{table} {what}"),
        format!(
            "replace it by a plain table with the same rows: rename it, then create table {table} (like the renamed one including all) and insert its rows (docs/operating.md, \"The outbox is no plain table\", has the statements). Retention deletes what is published, so partitions are not needed for that"
        ),
    );
}

fn columns(facts: &Facts, table: &str, conditions: &mut Conditions) {
    let missing: Vec<&str> = COLUMNS
        .iter()
        .map(|(name, ..)| *name)
        .filter(|name| !facts.outbox_columns.contains_key(*name))
        .collect();
    if !missing.is_empty() {
        let plural = if missing.len() == 1 { "" } else { "s" };
        let text = format!("table {table} has no column{plural} {}", missing.join(", "));
        conditions.refuse("outbox", text, "run `tidings migrate` for this database and schema, or name the right schema with --schema");
    }
    for (name, types, wanted) in COLUMNS {
        let Some(found) = facts
            .outbox_columns
            .get(*name)
            .filter(|found| !types.contains(&found.as_str()))
        else {
            continue;
        };
        conditions.refuse(
            "outbox",
            format!("column {name} of table {table} is of type {found}, and the relay reads {wanted}"),
            format!("run alter table {table} alter column {name} type {wanted} (with a using clause that keeps the values)"),
        );
    }
    if missing.is_empty() && !facts.outbox_is_indexed {
        conditions.warn(
            "outbox",
            format!("table {table} has no valid index on (xid, seq): each look at it reads the whole table"),
            format!("run create index concurrently outbox_xid_seq on {table} (xid, seq)"),
        );
    }
}

/// Its rows survive a crash, and are in the log.
fn storage(facts: &Facts, options: &RelayOptions, conditions: &mut Conditions) {
    if facts.outbox_persistence.as_deref() == Some("u") {
        let table = options.quoted_table();
        conditions.refuse(
            "outbox",
            format!("table {table} is unlogged: the write-ahead log does not have its rows, and a crash of the server empties it"),
            format!("run alter table {table} set logged"),
        );
    }
}

/// The relay sees every row.
fn visibility(facts: &Facts, conditions: &mut Conditions) {
    for table in &facts.hidden {
        conditions.refuse(
            "row level security",
            format!("row level security hides rows of {table} from the relay's role {}", facts.role),
            format!("give the role BYPASSRLS (alter role … bypassrls), or run alter table {table} disable row level security"),
        );
    }
}

/// Events of one aggregate are numbered in the order in which they are inserted.
fn numbers(facts: &Facts, conditions: &mut Conditions) {
    let Some(sequence) = &facts.outbox_sequence else {
        return;
    };
    let name = &sequence.name;
    if sequence.cache != 1 {
        conditions.refuse(
            "sequence",
            format!(
                "the sequence {name} hands out {} numbers at once, so events of one aggregate may be numbered out of order",
                sequence.cache
            ),
            format!("run alter sequence {name} cache 1"),
        );
    }
    if sequence.increment < 1 || sequence.cycles {
        conditions.refuse(
            "sequence",
            format!("the sequence {name} does not count up for ever, so events may be numbered out of order"),
            format!("run alter sequence {name} increment by 1 no cycle"),
        );
    }
}

/// Each row is inserted with the number of its own transaction. By any other number a relay that reads the table may not find it.
fn own_transactions(facts: &Facts, options: &RelayOptions, conditions: &mut Conditions) {
    if facts.outbox_kind.as_deref() == Some("r") && !facts.own_transactions {
        let (text, remedy) = without_own_transactions(&options.schema);
        conditions.refuse("trigger", text, remedy);
    }
}

fn without_own_transactions(schema: &str) -> (String, String) {
    (
        format!(
            "the trigger outbox_own_transaction of {schema}.outbox is not enabled for every session (a restore with --disable-triggers leaves it so): \
             rows that were inserted meanwhile may bear the numbers of other transactions, and a relay may not find them"
        ),
        format!(
            "run: alter table {schema}.outbox enable always trigger outbox_own_transaction; \
             update {schema}.outbox set xid = pg_current_xact_id() where xmin::text <> (xid::text::numeric % 4294967296)::text; \
             the relay then publishes these rows (again, if they were inserted within a savepoint and published before). If the trigger was dropped: \
             create trigger outbox_own_transaction before insert on {schema}.outbox for each row \
             when (new.xid is distinct from pg_current_xact_id()) execute function {schema}.own_transaction(), first"
        ),
    )
}

/// Whether each row is inserted with the number of its own transaction, for a relay that runs.
///
/// # Errors
/// The refusal, as at a start; a lost connection.
pub(crate) async fn require_own_transactions(
    session: &mut PgConnection,
    schema: &str,
) -> Result<(), Interruption> {
    let sql = "select exists (select from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
               where n.nspname = $1 and c.relname = 'outbox' and t.tgname = 'outbox_own_transaction' and t.tgenabled = 'A')";
    if within(
        "looking at the outbox",
        sqlx::query_scalar(sql).bind(schema).fetch_one(session),
    )
    .await?
    {
        return Ok(());
    }
    let (text, remedy) = without_own_transactions(schema);
    Err(Interruption::Refused(format!("{text}; {remedy}")))
}

fn triggers(facts: &Facts, options: &RelayOptions, conditions: &mut Conditions) {
    let others = facts
        .outbox_disabled_triggers
        .iter()
        .filter(|name| *name != "outbox_own_transaction");
    let names = others.map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        return;
    }
    let table = options.quoted_table();
    conditions.warn(
        "triggers",
        format!("triggers of {table} do not fire: {names}. What they guard against is not noticed"),
        format!("run alter table {table} enable trigger all"),
    );
}

/// Adds what only the rows show.
///
/// # Errors
/// A lost connection.
pub(super) async fn probe(
    options: &RelayOptions,
    session: &mut PgConnection,
    conditions: &mut Conditions,
) -> Result<(), Interruption> {
    // A Debezium table may be read without its transactions.
    if options.debezium.is_some() {
        return Ok(());
    }
    let table = options.quoted_table();
    let foreign = format!(
        "select exists (select from {table} where xid >= pg_snapshot_xmax(pg_current_snapshot()))"
    );
    if within(
        "looking at the outbox",
        sqlx::query_scalar(AssertSqlSafe(foreign)).fetch_one(session),
    )
    .await?
    {
        conditions.refuse(
            "outbox",
            "the outbox holds rows of transactions that this server has not had yet (column xid): it was restored from a dump, or copied",
            format!(
                "run update {table} set xid = pg_current_xact_id() to have them published (again, if they were before), or delete them"
            ),
        );
    }
    Ok(())
}
