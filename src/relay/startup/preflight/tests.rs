//! Tests of the conditions that facts decide.

use super::{facts::Sequence, *};

fn sound() -> Facts {
    let columns = [
        ("seq", "bigint"),
        ("id", "uuid"),
        ("aggregatetype", "text"),
        ("aggregateid", "text"),
        ("type", "text"),
        ("version", "integer"),
        ("payload", "json"),
        ("payload_bytes", "bytea"),
        ("headers", "jsonb"),
        ("occurred_at", "timestamp with time zone"),
        ("topic", "text"),
        ("xid", "xid8"),
    ];
    Facts {
        version_number: 150_008,
        version: "15.8".into(),
        in_recovery: false,
        read_only: false,
        encoding: "UTF8".into(),
        wal_level: "logical".into(),
        slots_max: 10,
        slots_used: 1,
        senders_max: 10,
        senders_used: 0,
        slot_wal_keep_megabytes: Some(1_024),
        role: "relay".into(),
        database: "shop".into(),
        superuser: false,
        replication: true,
        outbox_exists: true,
        outbox_kind: Some("r".into()),
        outbox_persistence: Some("p".into()),
        outbox_has_children: false,
        outbox_columns: columns
            .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
            .into(),
        outbox_is_indexed: true,
        outbox_disabled_triggers: Vec::new(),
        outbox_sequence: Some(Sequence {
            name: "tidings.outbox_seq_seq".into(),
            cache: 1,
            increment: 1,
            cycles: false,
        }),
        hidden: Vec::new(),
        schema_usage: Some(true),
        outbox_schema_usage: Some(true),
        outbox_select: Some(true),
        relay_write: Some(true),
        relay_topic_write: Some(true),
        relay_secret_write: Some(true),
        own_transactions: true,
        clock: chrono::Utc::now().timestamp_millis(),
        parked_write: Some(true),
        retention_write: Some(true),
        scheduled_write: Some(true),
        outbox_insert: Some(true),
        outbox_delete: Some(true),
        outbox_owned: Some(false),
        database_create: false,
        relay_is_current: true,
    }
}

fn options() -> RelayOptions {
    let database =
        crate::postgres::DatabaseSettings::parse("postgres://a@localhost/b").expect("a URL");
    RelayOptions::new(database, crate::kafka::Settings::default())
}

fn judged(log: Log, change: impl FnOnce(&mut Facts)) -> Conditions {
    let (mut facts, mut conditions, options) = (sound(), Conditions::default(), options());
    change(&mut facts);
    server::judge(&facts, log, &mut conditions);
    tables::judge(&facts, &options, &mut conditions);
    outbox::judge(&facts, &options, &mut conditions);
    server::room(&facts, log, false, &mut conditions);
    conditions
}

fn sequence(facts: &mut Facts) -> &mut Sequence {
    facts.outbox_sequence.as_mut().expect("it has one")
}

#[test]
fn a_sound_database_has_nothing_to_put_right() {
    for log in [Log::Needed, Log::Wanted, Log::Unwanted] {
        let conditions = judged(log, |_| {});
        assert!(
            conditions
                .0
                .iter()
                .all(|condition| condition.level == Level::Met),
            "{conditions:?}"
        );
        assert!(conditions.require().is_ok());
    }
}

/// Each fault is reported alone, with the setting or the SQL that corrects it.
#[test]
fn each_fault_is_one_condition_with_its_remedy() {
    type Case = (fn(&mut Facts), &'static str, Level, &'static str);
    let cases: &[Case] = &[
        (
            |facts| facts.version_number = 140_000,
            "version",
            Level::Refused,
            "PostgreSQL 15",
        ),
        (
            |facts| facts.in_recovery = true,
            "primary",
            Level::Waits,
            "database URL",
        ),
        (
            |facts| facts.read_only = true,
            "primary",
            Level::Waits,
            "default_transaction_read_only",
        ),
        (
            |facts| facts.encoding = "SQL_ASCII".into(),
            "encoding",
            Level::Warning,
            "encoding 'UTF8'",
        ),
        (
            |facts| facts.wal_level = "replica".into(),
            "wal_level",
            Level::Refused,
            "ALTER SYSTEM SET wal_level = logical",
        ),
        (
            |facts| facts.slots_used = 10,
            "replication slots",
            Level::Refused,
            "max_replication_slots",
        ),
        (
            |facts| facts.senders_used = 10,
            "WAL senders",
            Level::Refused,
            "max_wal_senders",
        ),
        (
            |facts| facts.slot_wal_keep_megabytes = Some(-1),
            "max_slot_wal_keep_size",
            Level::Warning,
            "max_slot_wal_keep_size",
        ),
        (
            |facts| facts.replication = false,
            "replication",
            Level::Refused,
            "ALTER ROLE relay REPLICATION",
        ),
        (
            |facts| (facts.replication, facts.role) = (false, "Re lay".into()),
            "replication",
            Level::Refused,
            "ALTER ROLE \"Re lay\" ",
        ),
        (
            |facts| facts.outbox_exists = false,
            "tables",
            Level::Refused,
            "tidings migrate",
        ),
        (
            |facts| facts.relay_write = None,
            "tables",
            Level::Refused,
            "tidings migrate",
        ),
        (
            |facts| facts.relay_is_current = false,
            "tables",
            Level::Refused,
            "tidings migrate",
        ),
        (
            |facts| facts.schema_usage = Some(false),
            "tables",
            Level::Refused,
            "grant usage on schema tidings to relay",
        ),
        (
            |facts| facts.outbox_select = Some(false),
            "tables",
            Level::Refused,
            "grant select on \"tidings\".\"outbox\" to relay",
        ),
        (
            |facts| facts.relay_topic_write = Some(false),
            "tables",
            Level::Refused,
            "tidings.relay_topic to relay",
        ),
        (
            |facts| facts.relay_secret_write = Some(false),
            "tables",
            Level::Refused,
            "tidings.relay_secret to relay",
        ),
        (
            |facts| facts.own_transactions = false,
            "trigger",
            Level::Refused,
            "enable always trigger outbox_own_transaction",
        ),
        (
            |facts| facts.scheduled_write = Some(false),
            "tables",
            Level::Refused,
            "tidings.scheduled to relay",
        ),
        (
            |facts| facts.outbox_insert = Some(false),
            "tables",
            Level::Refused,
            "grant insert (id, ",
        ),
        (
            |facts| facts.outbox_delete = Some(false),
            "retention",
            Level::Warning,
            "grant delete on",
        ),
        (
            |facts| facts.outbox_kind = Some("p".into()),
            "outbox",
            Level::Refused,
            "rename",
        ),
        (
            |facts| facts.outbox_kind = Some("v".into()),
            "outbox",
            Level::Refused,
            "rename",
        ),
        (
            |facts| facts.outbox_has_children = true,
            "outbox",
            Level::Refused,
            "rename",
        ),
        (
            |facts| facts.outbox_persistence = Some("u".into()),
            "outbox",
            Level::Refused,
            "set logged",
        ),
        (
            |facts| drop(facts.outbox_columns.remove("headers")),
            "outbox",
            Level::Refused,
            "tidings migrate",
        ),
        (
            |facts| drop(facts.outbox_columns.insert("id".into(), "text".into())),
            "outbox",
            Level::Refused,
            "alter column id type uuid",
        ),
        (
            |facts| facts.outbox_is_indexed = false,
            "outbox",
            Level::Warning,
            "create index concurrently",
        ),
        (
            |facts| facts.hidden.push("tidings.outbox".into()),
            "row level security",
            Level::Refused,
            "BYPASSRLS",
        ),
        (
            |facts| sequence(facts).cache = 100,
            "sequence",
            Level::Refused,
            "cache 1",
        ),
        (
            |facts| sequence(facts).increment = -1,
            "sequence",
            Level::Refused,
            "increment by 1",
        ),
        (
            |facts| sequence(facts).cycles = true,
            "sequence",
            Level::Refused,
            "no cycle",
        ),
        (
            |facts| facts.outbox_disabled_triggers.push("guard".into()),
            "triggers",
            Level::Warning,
            "enable trigger all",
        ),
    ];
    for (change, name, level, remedy) in cases {
        let conditions = judged(Log::Needed, change);
        let wrong: Vec<_> = conditions
            .0
            .iter()
            .filter(|condition| condition.level != Level::Met)
            .collect();
        assert_eq!(wrong.len(), 1, "{name}: {wrong:?}");
        assert_eq!((wrong[0].name.as_str(), wrong[0].level), (*name, *level));
        assert!(
            wrong[0]
                .remedy
                .as_ref()
                .is_some_and(|text| text.contains(remedy)),
            "{wrong:?}"
        );
        let start = conditions.require();
        match level {
            Level::Refused => assert!(
                matches!(&start, Err(Interruption::Refused(text)) if text.contains(remedy)),
                "{start:?}"
            ),
            Level::Waits => assert!(
                matches!(&start, Err(Interruption::Waiting(text)) if text.contains(remedy)),
                "{start:?}"
            ),
            _ => assert!(start.is_ok(), "{start:?}"),
        }
    }
}

#[test]
fn a_fault_of_the_log_is_a_refusal_only_for_a_relay_that_cannot_work_without_it() {
    let without: fn(&mut Facts) = |facts| {
        facts.wal_level = "replica".into();
        facts.replication = false;
        (facts.slots_used, facts.senders_used) = (10, 10);
    };
    let levels = |log| {
        judged(log, without)
            .0
            .into_iter()
            .map(|condition| condition.level)
            .max()
    };
    assert_eq!(levels(Log::Needed), Some(Level::Refused));
    assert_eq!(levels(Log::Wanted), Some(Level::Warning));
    let unwanted = judged(Log::Unwanted, |facts| facts.wal_level = "replica".into());
    assert!(
        unwanted
            .0
            .iter()
            .all(|condition| condition.name != "wal_level" || condition.level == Level::Met),
        "{unwanted:?}"
    );
}

#[test]
fn clocks_that_differ_are_warned_of() {
    let judged = |here, there| {
        let mut conditions = Conditions::default();
        server::clock(there, here, &mut conditions);
        conditions.0.remove(0)
    };
    assert_eq!(judged(31_000, 1_000).level, Level::Met);
    let two_days = judged(2 * 24 * 3_600_000, 0);
    assert!(
        two_days.level == Level::Warning
            && two_days.text.contains("172800 s: this machine is ahead"),
        "{two_days:?}"
    );
}
