//! What Postgres says: facts by one query, and what they mean.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgPool};

use super::{Finding, Findings};
use crate::cli::config::Config;
use crate::cli::database as connection;
use crate::cli::exit::{Failure, with_causes};
use crate::outbox::COLUMNS;
use crate::relay::{clock::disagreement, slot_name};

/// How many of the newest events are asked for their topics. Enough to meet every kind of event, few enough to be read at once.
const NEWEST: i64 = 10_000;

/// The oldest server the relay is tested on.
const VERSION_MIN: i32 = 150_000;

#[derive(Clone, Debug, serde::Deserialize)]
struct Facts {
    version_number: i32,
    version: String,
    in_recovery: bool,
    wal_level: String,
    slots_max: i32,
    slots_used: i32,
    senders_max: i32,
    senders_used: i32,
    /// -1 is no limit.
    slot_wal_keep_megabytes: Option<i64>,
    role: String,
    database: String,
    superuser: bool,
    replication: bool,
    slot_kind: Option<String>,
    slot_database: Option<String>,
    slot_wal_status: Option<String>,
    outbox_exists: bool,
    schema_usage: Option<bool>,
    outbox_schema_usage: Option<bool>,
    outbox_select: Option<bool>,
    relay_write: Option<bool>,
    relay_topic_write: Option<bool>,
    relay_secret_write: Option<bool>,
    /// Each row gets the number of its transaction.
    own_transactions: bool,
    /// What the server's clock shows, milliseconds since the Unix epoch.
    clock: i64,
    parked_write: Option<bool>,
    retention_write: Option<bool>,
    scheduled_write: Option<bool>,
    outbox_insert: Option<bool>,
    outbox_delete: Option<bool>,
    outbox_owned: Option<bool>,
    database_create: bool,
    /// None if there is no publication of the relay's name.
    publication_inserts: Option<bool>,
    publication_has_outbox: bool,
}

/// The table that events are read from.
struct Outbox {
    /// Tidings' own.
    is_own: bool,
    schema: String,
    table: String,
    publication: String,
    /// What to do if it is not there.
    remedy: &'static str,
}

impl Outbox {
    fn of(config: &Config, slot: &str) -> Self {
        match &config.debezium {
            None => Self {
                is_own: true,
                schema: config.schema.clone(),
                table: "outbox".into(),
                publication: slot.into(),
                remedy: "run `tidings migrate`",
            },
            Some(outbox) => Self {
                is_own: false,
                schema: outbox.schema.clone(),
                table: outbox.table.clone(),
                publication: outbox.publication.clone().unwrap_or_else(|| slot.into()),
                remedy: "name the table in outbox.table, in the letters that Postgres has",
            },
        }
    }

    fn name(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.table))
    }
}

/// The findings, and the topics that events go to.
pub(super) async fn look(config: &Config) -> Result<(Vec<Finding>, Vec<String>), Failure> {
    let settings = connection::settings(config)?;
    let mut findings = Findings::of("postgres");
    let pool = match connection::connect(settings, "check").await {
        Ok(pool) => pool,
        Err(error) => {
            let text = connection::unreachable(settings, &error);
            let (text, remedy) = text.split_once("\n  -> ").unwrap_or((&text, ""));
            findings.fail("reachable", text, remedy);
            return Ok((findings.list, Vec::new()));
        }
    };
    let slot = slot_name(&config.name);
    let outbox = Outbox::of(config, &slot);
    let facts = match ask(&pool, &config.schema, &slot, &outbox).await {
        Ok(facts) => facts,
        Err(error) => {
            findings.fail(
                "catalogs",
                format!("cannot be read: {}", with_causes(&error)),
                "is this PostgreSQL itself, of a supported version?",
            );
            return Ok((findings.list, Vec::new()));
        }
    };
    findings.ok("reachable", format!("{} as {}", settings.redacted(), facts.role));
    super::password::look(settings, &mut findings).await;
    judge_server(&facts, &mut findings);
    judge_clock(facts.clock, here(), &mut findings);
    judge_rights(&facts, &config.schema, &outbox, &mut findings);
    judge_publication(&facts, &outbox, &mut findings);
    judge_slot(&facts, &slot, &mut findings);
    if facts.relay_write.is_some() {
        super::sagas::look(&pool, &config.schema, &mut findings).await;
        super::subscribers::look(&pool, &config.schema, &mut findings).await;
    }
    let topics = match config.debezium.is_none() && facts.outbox_exists && facts.outbox_select == Some(true) {
        true => topics(&pool, config).await.unwrap_or_default(),
        false => Vec::new(),
    };
    Ok((findings.list, topics))
}

async fn ask(pool: &PgPool, schema: &str, slot: &str, outbox: &Outbox) -> Result<Facts, sqlx::Error> {
    const SQL: &str = concat!("select to_json(facts) from (", include_str!("database.sql"), ") facts");
    let Json(facts) = sqlx::query_scalar(SQL)
        .bind(schema)
        .bind(slot)
        .bind(&outbox.schema)
        .bind(&outbox.table)
        .bind(&outbox.publication)
        .fetch_one(pool)
        .await?;
    Ok(facts)
}

async fn topics(pool: &PgPool, config: &Config) -> Result<Vec<String>, sqlx::Error> {
    let sql = include_str!("topics.sql").replace("{schema}", &config.schema);
    sqlx::query_scalar(AssertSqlSafe(sql)).bind(NEWEST).bind(&config.topic).fetch_all(pool).await
}

fn judge_server(facts: &Facts, findings: &mut Findings) {
    match facts.version_number {
        VERSION_MIN.. => findings.ok("version", &facts.version),
        _ => findings.fail("version", format!("{} is too old", facts.version), "upgrade to PostgreSQL 15 or newer"),
    }
    match facts.in_recovery {
        false => findings.ok("primary", "not in recovery"),
        true => findings.fail("primary", "a standby: it cannot be written to", "name the primary in --database-url"),
    }
    match facts.wal_level.as_str() {
        "logical" => findings.ok("wal_level", "logical"),
        other => findings.fail(
            "wal_level",
            format!("{other}: the write-ahead log cannot be decoded"),
            "alter system set wal_level = 'logical', then restart the server (RDS: rds.logical_replication = 1)",
        ),
    }
    let free = |max: i32, used: i32| format!("{used} of {max} used");
    match facts.slot_kind.is_some() || facts.slots_used < facts.slots_max {
        true => findings.ok("replication slots", free(facts.slots_max, facts.slots_used)),
        false => findings.fail(
            "replication slots",
            format!("{}, none is left", free(facts.slots_max, facts.slots_used)),
            "raise max_replication_slots and restart the server, or drop an unused one: select pg_drop_replication_slot(…)",
        ),
    }
    match facts.senders_used < facts.senders_max {
        true => findings.ok("WAL senders", free(facts.senders_max, facts.senders_used)),
        false => findings.fail(
            "WAL senders",
            format!("{}, none is left", free(facts.senders_max, facts.senders_used)),
            "raise max_wal_senders and restart the server",
        ),
    }
    match facts.slot_wal_keep_megabytes {
        Some(megabytes @ 0..) => findings.ok("max_slot_wal_keep_size", format!("{megabytes} MB")),
        _ => findings.warn(
            "max_slot_wal_keep_size",
            "no limit: while the relay is down the server keeps WAL until its disk is full",
            "alter system set max_slot_wal_keep_size = '50GB' (what the disk can spare), then select pg_reload_conf()",
        ),
    }
}

/// What this machine's clock shows, milliseconds since the Unix epoch.
fn here() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

fn judge_clock(server: i64, here: i64, findings: &mut Findings) {
    match disagreement(here, server) {
        None => findings.ok("clock", "as this machine's"),
        Some((by, ahead)) => findings.warn(
            "clock",
            format!("differs by {} s: this machine is {}", by.as_secs(), if ahead { "ahead" } else { "behind" }),
            "synchronise both with a time server: records are stamped by the database's clock, and brokers refuse what is too far from theirs",
        ),
    }
}

fn judge_rights(facts: &Facts, schema: &str, outbox: &Outbox, findings: &mut Findings) {
    let (role, table) = (quoted(&facts.role), outbox.name());
    match facts.superuser || facts.replication {
        true => findings.ok("replication", format!("allowed to {}", facts.role)),
        false => findings.fail(
            "replication",
            format!("{} may not replicate", facts.role),
            format!("alter role {role} with replication (RDS: grant rds_replication to {role})"),
        ),
    }
    if !facts.outbox_exists {
        findings.fail("tables", format!("there is no table {table} in {}", facts.database), outbox.remedy);
        return;
    }
    let mut missing = Vec::new();
    if facts.schema_usage != Some(true) {
        missing.push(format!("grant usage on schema {schema} to {role}"));
    }
    if facts.outbox_schema_usage != Some(true) && outbox.schema != schema {
        missing.push(format!("grant usage on schema {} to {role}", quoted(&outbox.schema)));
    }
    if facts.outbox_select != Some(true) {
        missing.push(format!("grant select on {table} to {role}"));
    }
    if facts.relay_write == Some(false) || facts.relay_topic_write == Some(false) {
        missing.push(format!("grant select, insert, update, delete on {schema}.relay, {schema}.relay_topic to {role}"));
    }
    if facts.relay_secret_write == Some(false) {
        missing.push(format!("grant select, insert, update on {schema}.relay_secret to {role}"));
    }
    if facts.parked_write == Some(false) {
        missing.push(format!("grant select, insert, update, delete on {schema}.parked to {role}"));
    }
    if facts.retention_write == Some(false) {
        missing.push(format!("grant select, update on {schema}.retention to {role}"));
    }
    // Nothing is moved into somebody else's table.
    if outbox.is_own && facts.scheduled_write == Some(false) {
        missing.push(format!("grant select, update, delete on {schema}.scheduled to {role}"));
    }
    if outbox.is_own && facts.outbox_insert == Some(false) {
        missing.push(format!("grant insert ({COLUMNS}) on {table} to {role}"));
    }
    // Nothing is deleted from somebody else's table.
    if outbox.is_own && facts.outbox_delete == Some(false) {
        let remedy = format!("grant delete on {table} to {role}; or set [retention] enabled = false");
        findings.warn("retention", "published events cannot be deleted from the outbox", remedy);
    }
    let tables = [
        facts.relay_write,
        facts.relay_topic_write,
        facts.relay_secret_write,
        facts.parked_write,
        facts.retention_write,
        facts.scheduled_write,
    ];
    if outbox.is_own && facts.relay_secret_write.is_some() && !facts.own_transactions {
        findings.fail(
            "trigger",
            format!("{table}: outbox_own_transaction is not enabled for every session, so copied rows may never be published"),
            format!("alter table {table} enable always trigger outbox_own_transaction; the relay's refusal names what to do about rows"),
        );
    }
    match (missing.is_empty(), tables.iter().all(Option::is_some)) {
        (_, false) => findings.fail(
            "tables",
            format!("one of {schema}.relay, .relay_topic, .relay_secret, .parked, .retention and .scheduled is missing"),
            "run `tidings migrate`",
        ),
        (true, true) => findings.ok(
            "tables",
            format!("{table}, {schema}.relay, {schema}.relay_topic, {schema}.relay_secret, {schema}.parked, {schema}.retention, {schema}.scheduled"),
        ),
        (false, true) => findings.fail("tables", format!("{} lacks rights", facts.role), missing.join("; ")),
    }
}

fn judge_publication(facts: &Facts, outbox: &Outbox, findings: &mut Findings) {
    let (role, table, name) = (quoted(&facts.role), outbox.name(), &outbox.publication);
    match (facts.publication_inserts, facts.publication_has_outbox) {
        // Told among the tables.
        (None, _) if !facts.outbox_exists => {}
        (Some(true), true) => findings.ok("publication", format!("{name}, of {table}")),
        (Some(true), false) => findings.fail(
            "publication",
            format!("{name} does not have {table}: no event would be read"),
            format!("alter publication {name} add table {table}"),
        ),
        (Some(false), _) => findings.fail(
            "publication",
            format!("{name} leaves inserts out: no event would be read"),
            format!("alter publication {name} set (publish = 'insert')"),
        ),
        (None, _) if facts.superuser || (facts.outbox_owned == Some(true) && facts.database_create) => {
            findings.ok("publication", format!("{name} is created when the relay starts"));
        }
        (None, _) => findings.fail(
            "publication",
            format!("there is no {name}, and {} may not create it", facts.role),
            format!(
                "as the table's owner: create publication {name} for table {table} with (publish = 'insert'); or make {role} the owner and grant create on database {} to it",
                quoted(&facts.database)
            ),
        ),
    }
}

fn judge_slot(facts: &Facts, slot: &str, findings: &mut Findings) {
    match (facts.slot_kind.as_deref(), facts.slot_wal_status.as_deref()) {
        (None, _) => findings.ok("slot", format!("{slot} is created when the relay starts")),
        (Some("logical pgoutput"), _) if facts.slot_database.as_deref() != Some(&facts.database) => findings.fail(
            "slot",
            format!("{slot} belongs to the database {}", facts.slot_database.as_deref().unwrap_or("?")),
            "give this relay another name with --name",
        ),
        (Some("logical pgoutput"), Some("lost")) => findings.fail(
            "slot",
            format!("{slot} is lost: the server removed WAL that had not been read"),
            format!("select pg_drop_replication_slot('{slot}'), raise max_slot_wal_keep_size and start the relay: it says how to resume"),
        ),
        (Some("logical pgoutput"), status) => findings.ok("slot", format!("{slot}, WAL {}", status.unwrap_or("unknown"))),
        (Some(kind), _) => findings.fail("slot", format!("{slot} is of another kind: {kind}"), "give this relay another name with --name"),
    }
}

/// An identifier for SQL that is printed, in quotes where it needs them.
fn quoted(name: &str) -> String {
    let plain =
        name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_')) && !name.starts_with(|c: char| c.is_ascii_digit());
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests;
