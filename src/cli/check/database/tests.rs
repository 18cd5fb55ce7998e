//! Facts in, findings out.

use super::super::State;
use super::*;

fn sound() -> Facts {
    Facts {
        version_number: 150_008,
        version: "15.8".into(),
        in_recovery: false,
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
        slot_kind: Some("logical pgoutput".into()),
        slot_database: Some("shop".into()),
        slot_wal_status: Some("reserved".into()),
        outbox_exists: true,
        schema_usage: Some(true),
        outbox_schema_usage: Some(true),
        outbox_select: Some(true),
        relay_write: Some(true),
        relay_topic_write: Some(true),
        relay_secret_write: Some(true),
        own_transactions: true,
        clock: 0,
        parked_write: Some(true),
        retention_write: Some(true),
        scheduled_write: Some(true),
        outbox_insert: Some(true),
        outbox_delete: Some(true),
        outbox_owned: Some(false),
        database_create: false,
        publication_inserts: Some(true),
        publication_has_outbox: true,
    }
}

fn judged(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let mut facts = sound();
    change(&mut facts);
    let mut findings = Findings::of("postgres");
    judge_server(&facts, &mut findings);
    let outbox = Outbox {
        is_own: true,
        schema: "tidings".into(),
        table: "outbox".into(),
        publication: "tidings".into(),
        remedy: "run `tidings migrate`",
    };
    judge_rights(&facts, "tidings", &outbox, &mut findings);
    judge_publication(&facts, &outbox, &mut findings);
    judge_slot(&facts, "tidings", &mut findings);
    findings.list
}

#[test]
fn a_sound_database_has_nothing_to_put_right() {
    assert!(judged(|_| {}).iter().all(|finding| finding.state == State::Ok));
}

#[test]
fn whatever_is_wrong_is_told_alone_with_the_setting_or_sql_that_puts_it_right() {
    type Case = (fn(&mut Facts), &'static str, State, &'static str);
    let cases: &[Case] = &[
        (|facts| facts.version_number = 140_000, "version", State::Fail, "PostgreSQL 15"),
        (|facts| facts.in_recovery = true, "primary", State::Fail, "--database-url"),
        (|facts| facts.wal_level = "replica".into(), "wal_level", State::Fail, "alter system set wal_level = 'logical'"),
        (|facts| (facts.slots_used, facts.slot_kind) = (10, None), "replication slots", State::Fail, "max_replication_slots"),
        (|facts| facts.senders_used = 10, "WAL senders", State::Fail, "max_wal_senders"),
        (|facts| facts.slot_wal_keep_megabytes = Some(-1), "max_slot_wal_keep_size", State::Warn, "max_slot_wal_keep_size"),
        (|facts| facts.replication = false, "replication", State::Fail, "alter role relay with replication"),
        (|facts| (facts.replication, facts.role) = (false, "Re lay".into()), "replication", State::Fail, "alter role \"Re lay\" with"),
        (|facts| (facts.outbox_exists, facts.publication_inserts) = (false, None), "tables", State::Fail, "tidings migrate"),
        (|facts| facts.relay_write = None, "tables", State::Fail, "tidings migrate"),
        (|facts| facts.schema_usage = Some(false), "tables", State::Fail, "grant usage on schema tidings to relay"),
        (|facts| facts.outbox_select = Some(false), "tables", State::Fail, "grant select on tidings.outbox to relay"),
        (|facts| facts.relay_topic_write = Some(false), "tables", State::Fail, "tidings.relay_topic to relay"),
        (|facts| facts.scheduled_write = Some(false), "tables", State::Fail, "tidings.scheduled to relay"),
        (|facts| facts.outbox_insert = Some(false), "tables", State::Fail, "grant insert (id, "),
        (|facts| facts.publication_inserts = Some(false), "publication", State::Fail, "set (publish = 'insert')"),
        (|facts| facts.publication_has_outbox = false, "publication", State::Fail, "alter publication tidings add table tidings.outbox"),
        (|facts| facts.publication_inserts = None, "publication", State::Fail, "create publication tidings for table tidings.outbox"),
        (|facts| facts.slot_kind = Some("physical ".into()), "slot", State::Fail, "--name"),
        (|facts| facts.slot_database = Some("other".into()), "slot", State::Fail, "--name"),
        (|facts| facts.slot_wal_status = Some("lost".into()), "slot", State::Fail, "pg_drop_replication_slot('tidings')"),
    ];
    for (change, name, state, remedy) in cases {
        let wrong: Vec<_> = judged(change).into_iter().filter(|finding| finding.state != State::Ok).collect();
        assert_eq!(wrong.len(), 1, "{name}: {wrong:?}");
        assert_eq!((wrong[0].name.as_str(), wrong[0].state), (*name, *state));
        assert!(wrong[0].remedy.as_ref().is_some_and(|text| text.contains(remedy)), "{wrong:?}");
    }
}

#[test]
fn a_slot_that_exists_needs_no_free_one_and_an_owner_needs_no_publication() {
    assert!(judged(|facts| facts.slots_used = 10).iter().all(|finding| finding.state == State::Ok));
    let owner = judged(|facts| (facts.publication_inserts, facts.outbox_owned, facts.database_create) = (None, Some(true), true));
    assert!(owner.iter().all(|finding| finding.state == State::Ok));
    assert_eq!((slot_name("tidings").as_str(), slot_name("orders").as_str()), ("tidings", "tidings_orders"));
}

/// Case B21.
#[test]
fn clocks_that_differ_are_warned_of() {
    let judged = |server, here| {
        let mut findings = Findings::of("postgres");
        judge_clock(server, here, &mut findings);
        findings.list.remove(0)
    };
    assert_eq!(judged(1_000, 31_000).state, State::Ok);
    let two_days = judged(0, 2 * 24 * 3_600_000);
    assert!(two_days.state == State::Warn && two_days.text.contains("172800 s: this machine is ahead"), "{two_days:?}");
}

/// Case A4.
#[test]
fn a_trigger_that_copied_rows_need_is_missed() {
    let findings = judged(|facts| facts.own_transactions = false);
    let finding = findings.iter().find(|finding| finding.name == "trigger").expect("it is told");
    assert!(
        finding.state == State::Fail && finding.remedy.as_deref().is_some_and(|remedy| remedy.contains("enable always trigger")),
        "{finding:?}"
    );
}
