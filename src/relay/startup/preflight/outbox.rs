//! Conditions of the table that events are read from.

use sqlx::{AssertSqlSafe, PgConnection};

use super::{Conditions, facts::Facts};
use crate::relay::{RelayOptions, error::Interruption, leadership::relay_store::within};

/// Columns with their accepted types and the type that a migration gives them.
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

/// Types whose values are sent as characters.
const TEXT: &[&str] = &[
    "text",
    "character varying",
    "character",
    "name",
    "citext",
    "public.citext",
];

/// Adds the conditions that the facts decide.
pub(super) fn judge(facts: &Facts, options: &RelayOptions, conditions: &mut Conditions) {
    if !facts.outbox_exists {
        return;
    }
    let before = conditions.0.len();
    if options.debezium.is_none() {
        table_layout(facts, options, conditions);
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

/// Checks that the outbox is a plain table with the columns of the migrations.
fn table_layout(facts: &Facts, options: &RelayOptions, conditions: &mut Conditions) {
    let table = options.quoted_table();
    let what = match facts.outbox_kind.as_deref() {
        Some("r") if facts.outbox_has_children => {
            "has child tables, whose rows the log contains under other names"
        }
        Some("r") => return columns(facts, &table, conditions),
        Some("p") => "is partitioned, and the log contains a partition's rows under another name",
        Some("v" | "m") => "is a view, and the log contains no rows of a view",
        Some("f") => "is a foreign table, and the log contains no rows of one",
        _ => "is not a plain table",
    };
    conditions.refuse(
        "outbox",
        format!("{table} {what}"),
        format!(
            "replace it with a plain table that has the same rows: rename it, then create table \
             {table} (like the renamed one including all) and insert its rows (docs/operating.md, \
             \"The outbox is no plain table\", has the statements). Retention deletes published \
             events, so partitions are not needed for that purpose"
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
        conditions.refuse(
            "outbox",
            text,
            "run `tidings migrate` for this database and schema, or set the correct schema with \
             --schema",
        );
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
            format!(
                "column {name} of table {table} has type {found}, but the relay reads {wanted}"
            ),
            format!(
                "run alter table {table} alter column {name} type {wanted} (with a using clause \
                 that keeps the values)"
            ),
        );
    }
    if missing.is_empty() && !facts.outbox_is_indexed {
        conditions.warn(
            "outbox",
            format!(
                "table {table} has no valid index on (xid, seq): each query reads the whole table"
            ),
            format!("run create index concurrently outbox_xid_seq on {table} (xid, seq)"),
        );
    }
}

/// Checks that the rows survive a crash and appear in the log.
fn storage(facts: &Facts, options: &RelayOptions, conditions: &mut Conditions) {
    if facts.outbox_persistence.as_deref() == Some("u") {
        let table = options.quoted_table();
        conditions.refuse(
            "outbox",
            format!(
                "table {table} is unlogged: the write-ahead log does not contain its rows, and a \
                 crash of the server empties it"
            ),
            format!("run alter table {table} set logged"),
        );
    }
}

/// Checks that the relay can see every row.
fn visibility(facts: &Facts, conditions: &mut Conditions) {
    for table in &facts.hidden {
        conditions.refuse(
            "row level security",
            format!(
                "row level security hides rows of {table} from the relay's role {}",
                facts.role
            ),
            format!(
                "give the role BYPASSRLS (alter role … bypassrls), or run alter table {table} \
                 disable row level security"
            ),
        );
    }
}

/// Checks that events of one aggregate are numbered in the order of their inserts.
fn numbers(facts: &Facts, conditions: &mut Conditions) {
    let Some(sequence) = &facts.outbox_sequence else {
        return;
    };
    let name = &sequence.name;
    if sequence.cache != 1 {
        conditions.refuse(
            "sequence",
            format!(
                "the sequence {name} reserves {} numbers at once, so events of one aggregate may \
                 be numbered out of order",
                sequence.cache
            ),
            format!("run alter sequence {name} cache 1"),
        );
    }
    if sequence.increment < 1 || sequence.cycles {
        conditions.refuse(
            "sequence",
            format!(
                "the sequence {name} does not always count up, so events may be numbered out of \
                 order"
            ),
            format!("run alter sequence {name} increment by 1 no cycle"),
        );
    }
}

/// Checks that each row is inserted with the id of its own transaction. A relay that reads the
/// table may miss a row with another id.
fn own_transactions(facts: &Facts, options: &RelayOptions, conditions: &mut Conditions) {
    if facts.outbox_kind.as_deref() == Some("r") && !facts.own_transactions {
        let (text, remedy) = without_own_transactions(&options.schema);
        conditions.refuse("trigger", text, remedy);
    }
}

fn without_own_transactions(schema: &str) -> (String, String) {
    (
        format!(
            "the trigger outbox_own_transaction of {schema}.outbox is not enabled for every \
             session (a restore with --disable-triggers leaves it disabled): rows that were \
             inserted in the meantime may have the ids of other transactions, and a relay may miss \
             them"
        ),
        format!(
            "run: alter table {schema}.outbox enable always trigger outbox_own_transaction; update \
             {schema}.outbox set xid = pg_current_xact_id() where xmin::text <> \
             (xid::text::numeric % 4294967296)::text; the relay then publishes these rows (again, \
             if they were inserted within a savepoint and published before). If the trigger was \
             dropped, first run: create trigger outbox_own_transaction before insert on \
             {schema}.outbox for each row when (new.xid is distinct from pg_current_xact_id()) \
             execute function {schema}.own_transaction()"
        ),
    )
}

/// Checks for a running relay that each row is inserted with the id of its own transaction.
///
/// # Errors
///
/// Returns the same refusal as at a start, or an error if the connection is lost.
pub(crate) async fn require_own_transactions(
    session: &mut PgConnection,
    schema: &str,
) -> Result<(), Interruption> {
    let sql = "select exists (select from pg_trigger t join pg_class c on c.oid = t.tgrelid
                   join pg_namespace n on n.oid = c.relnamespace
               where n.nspname = $1 and c.relname = 'outbox'
                   and t.tgname = 'outbox_own_transaction' and t.tgenabled = 'A')";
    if within(
        "examining the outbox",
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
        format!(
            "triggers of {table} do not fire: {names}. The faults that they guard against are not \
             detected"
        ),
        format!("run alter table {table} enable trigger all"),
    );
}

/// Adds the conditions that depend on the rows.
///
/// # Errors
///
/// Returns an error if the connection is lost.
pub(super) async fn probe(
    options: &RelayOptions,
    session: &mut PgConnection,
    conditions: &mut Conditions,
) -> Result<(), Interruption> {
    // A Debezium table may be read without transaction ids.
    if options.debezium.is_some() {
        return Ok(());
    }
    let table = options.quoted_table();
    let foreign = format!(
        "select exists (select from {table} where xid >= pg_snapshot_xmax(pg_current_snapshot()))"
    );
    if within(
        "examining the outbox",
        sqlx::query_scalar(AssertSqlSafe(foreign)).fetch_one(session),
    )
    .await?
    {
        conditions.refuse(
            "outbox",
            "the outbox holds rows of transactions that this server has not had yet (column xid): \
             it was restored from a dump, or copied",
            format!(
                "run update {table} set xid = pg_current_xact_id() to publish them (again, if they \
                 were published before), or delete them"
            ),
        );
    }
    Ok(())
}
