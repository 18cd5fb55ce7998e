//! Conditions of the server and of the database as a whole.

use chrono::Utc;

use super::{Conditions, Log, facts::Facts, quoted};
use crate::relay::pipeline::clock::disagreement;

/// The oldest server version that the relay is tested on.
const VERSION_MIN: i32 = 150_000;

/// Adds the conditions of the server.
pub(super) fn judge(facts: &Facts, log: Log, conditions: &mut Conditions) {
    match facts.version_number {
        VERSION_MIN.. => conditions.met("version", &facts.version),
        _ => conditions.refuse(
            "version",
            format!("Postgres {} is too old", facts.version),
            "upgrade to PostgreSQL 15 or newer",
        ),
    }
    clock(facts.clock, Utc::now().timestamp_millis(), conditions);
    writable(facts, conditions);
    encoding(facts, conditions);
    if log == Log::Unwanted {
        return conditions.met(
            "wal_level",
            format!(
                "{}; source is poll, so the log is not read",
                facts.wal_level
            ),
        );
    }
    logical(facts, log, conditions);
}

/// Checks that the clocks agree: records get timestamps from the server's clock.
pub(super) fn clock(server: i64, here: i64, conditions: &mut Conditions) {
    match disagreement(here, server) {
        None => conditions.met("clock", "agrees with this machine's clock"),
        Some((by, ahead)) => conditions.warn(
            "clock",
            format!(
                "differs by {} s: this machine is {}",
                by.as_secs(),
                if ahead { "ahead" } else { "behind" }
            ),
            "synchronize both with a time server: records get timestamps from the database's \
             clock, and brokers refuse timestamps that are too far from their own clock",
        ),
    }
}

/// Checks that the relay can store its position and its lease in the database.
fn writable(facts: &Facts, conditions: &mut Conditions) {
    let name = "primary";
    match (facts.in_recovery, facts.read_only) {
        (false, false) => conditions.met(name, "not in recovery, and writable"),
        // Snapshots of a standby do not list transactions in progress, so its table cannot be
        // polled either.
        (true, _) => conditions.wait(
            name,
            "this server is a standby: waiting for a primary",
            "name the primary in the database URL, or a host name that moves with it; or promote \
             this server",
        ),
        (false, true) => conditions.wait(
            name,
            format!(
                "sessions of {} in database {} are read-only: waiting until they may write",
                facts.role, facts.database
            ),
            "look for default_transaction_read_only in the database, the role, the server's \
             configuration and the database URL, and set it to off",
        ),
    }
}

/// Checks that text is valid in UTF-8, the encoding that the relay requests.
fn encoding(facts: &Facts, conditions: &mut Conditions) {
    let name = "encoding";
    match facts.encoding.as_str() {
        "SQL_ASCII" => conditions.warn(
            name,
            "the database's encoding is SQL_ASCII, so the outbox may contain text that is not \
             UTF-8: the relay stops before such an event",
            "store only UTF-8; or dump, create (with encoding 'UTF8') and restore the database",
        ),
        encoding => conditions.met(name, encoding),
    }
}

/// Checks that the server can decode its log for one more relay.
fn logical(facts: &Facts, log: Log, conditions: &mut Conditions) {
    match facts.wal_level.as_str() {
        "logical" => conditions.met("wal_level", "logical"),
        other => conditions.without_log(
            log,
            "wal_level",
            format!("wal_level is `{other}`, so the write-ahead log cannot be decoded"),
            "run ALTER SYSTEM SET wal_level = logical and restart Postgres (on a managed service, \
             set rds.logical_replication, cloudsql.logical_decoding or the like)",
        ),
    }
    match facts.slot_wal_keep_megabytes {
        Some(megabytes @ 0..) => {
            conditions.met("max_slot_wal_keep_size", format!("{megabytes} MB"))
        }
        _ => conditions.warn(
            "max_slot_wal_keep_size",
            "no limit: while the relay is down, the server keeps WAL until its disk is full",
            "run ALTER SYSTEM SET max_slot_wal_keep_size = '50GB' (a size that the disk can \
             spare), then select pg_reload_conf()",
        ),
    }
    match facts.superuser || facts.replication {
        true => conditions.met("replication", format!("allowed to {}", facts.role)),
        false => {
            let role = quoted(&facts.role);
            conditions.without_log(
                log,
                "replication",
                format!("permission denied: role {role} may not replicate"),
                format!(
                    "run ALTER ROLE {role} REPLICATION (on RDS: grant rds_replication to {role})"
                ),
            );
        }
    }
}

/// Checks that the server has a free slot and a free WAL sender. A relay whose slot exists has
/// both, or had them.
pub(super) fn room(facts: &Facts, log: Log, slot_exists: bool, conditions: &mut Conditions) {
    let used = |used: i32, max: i32| format!("{used} of {max} used");
    match slot_exists || facts.slots_used < facts.slots_max {
        true => conditions.met("replication slots", used(facts.slots_used, facts.slots_max)),
        false => conditions.without_log(
            log,
            "replication slots",
            format!("{}, none is left", used(facts.slots_used, facts.slots_max)),
            "raise max_replication_slots in postgresql.conf and restart the server, or drop an \
             unused slot (select * from pg_replication_slots)",
        ),
    }
    match facts.senders_used < facts.senders_max {
        true => conditions.met("WAL senders", used(facts.senders_used, facts.senders_max)),
        // One of them may be this relay's own, which the next leader ends.
        false if slot_exists => conditions.warn(
            "WAL senders",
            format!(
                "{}, none is left",
                used(facts.senders_used, facts.senders_max)
            ),
            "raise max_wal_senders in postgresql.conf and restart the server",
        ),
        false => conditions.without_log(
            log,
            "WAL senders",
            format!(
                "{}, none is left",
                used(facts.senders_used, facts.senders_max)
            ),
            "raise max_wal_senders in postgresql.conf and restart the server",
        ),
    }
}
