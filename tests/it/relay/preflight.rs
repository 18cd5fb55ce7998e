//! Preflight: every fault that keeps a relay from starting is also found by `tidings check`, with
//! the same text.

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use tidings::relay::{CheckState, RelayOptions, SourceKind};

use super::operator::insert;
use crate::support::running::{Place, Running};
use crate::support::services::{encoded_database, migrated_database};

/// A fault of the database and its repair. `%s` is the relay's slot, `%d` the database.
struct Case {
    fault: &'static str,
    /// Part of the message.
    message: &'static str,
    remedy: &'static str,
    repair: &'static str,
    source: SourceKind,
}

const CASES: &[Case] = &[
    Case {
        fault: "alter sequence tidings.outbox_seq_seq cache 100",
        message: "reserves 100 numbers at once",
        remedy: "alter sequence tidings.outbox_seq_seq cache 1",
        repair: "alter sequence tidings.outbox_seq_seq cache 1",
        source: SourceKind::Auto,
    },
    Case {
        fault: "alter sequence tidings.outbox_seq_seq increment by -1 minvalue -1000 start 1 cycle",
        message: "does not always count up",
        remedy: "increment by 1 no cycle",
        repair: "alter sequence tidings.outbox_seq_seq increment by 1 no cycle minvalue 1",
        source: SourceKind::Auto,
    },
    Case {
        fault: "alter table tidings.outbox rename column headers to heads",
        message: "has no column headers",
        remedy: "tidings migrate",
        repair: "alter table tidings.outbox rename column heads to headers",
        source: SourceKind::Auto,
    },
    Case {
        fault: "alter table tidings.outbox alter column version type bigint",
        message: "column version of table \"tidings\".\"outbox\" has type bigint",
        remedy: "alter column version type int",
        repair: "alter table tidings.outbox alter column version type int",
        source: SourceKind::Poll,
    },
    Case {
        fault: "alter table tidings.outbox rename to plain;
                create table tidings.outbox (like tidings.plain including defaults) \
                partition by range (seq)",
        message: "is partitioned",
        remedy: "plain table",
        repair: "drop table tidings.outbox; alter table tidings.plain rename to outbox",
        source: SourceKind::Auto,
    },
    Case {
        fault: "alter table tidings.outbox rename to plain; create view tidings.outbox as \
            select * from tidings.plain",
        message: "is a view",
        remedy: "plain table",
        repair: "drop view tidings.outbox; alter table tidings.plain rename to outbox",
        source: SourceKind::Poll,
    },
    Case {
        fault: "create table tidings.child () inherits (tidings.outbox)",
        message: "has child tables",
        remedy: "plain table",
        repair: "drop table tidings.child",
        source: SourceKind::Auto,
    },
    Case {
        fault: "alter table tidings.outbox set unlogged",
        message: "is unlogged",
        remedy: "set logged",
        repair: "alter table tidings.outbox set logged",
        source: SourceKind::Poll,
    },
    Case {
        fault: "alter table tidings.parked rename to elsewhere",
        message: "is missing in schema tidings",
        remedy: "tidings migrate",
        repair: "alter table tidings.elsewhere rename to parked",
        source: SourceKind::Auto,
    },
    Case {
        fault: "update tidings.outbox set xid = '9999999999'",
        message: "transactions that this server has not had yet",
        remedy: "set xid = pg_current_xact_id()",
        repair: "update tidings.outbox set xid = pg_current_xact_id()",
        source: SourceKind::Auto,
    },
    Case {
        fault: "create publication %s for table tidings.outbox with (publish = 'update')",
        message: "leaves inserts out",
        remedy: "SET (publish = 'insert')",
        repair: "drop publication %s",
        source: SourceKind::Wal,
    },
    Case {
        fault: "create publication %s for table tidings.relay",
        message: "does not contain this outbox",
        remedy: "--name",
        repair: "drop publication %s",
        source: SourceKind::Auto,
    },
    Case {
        fault: "select pg_create_physical_replication_slot('%s')",
        message: "slot `%s` belongs to",
        remedy: "--name",
        repair: "select pg_drop_replication_slot('%s')",
        source: SourceKind::Auto,
    },
    Case {
        fault: "insert into tidings.relay (name, identity, position, number) \
            select '%n', '{\"system\": \"1\", \"database\": 5, \"timeline\": 1}', null, 0",
        message: "has a position in another database (system 1, oid 5;",
        remedy: "tidings relay adopt",
        repair: "delete from tidings.relay",
        source: SourceKind::Auto,
    },
];

fn named(text: &str, place: &Place) -> String {
    text.replace("%s", &place.slot()).replace("%n", &place.name)
}

async fn run(pool: &PgPool, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql.clone()))
        .execute(pool)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Returns the exit code of `check`, and text and remedy of each finding that is not `ok`.
fn faults_of_check(place: &Place, source: SourceKind) -> (i32, Vec<(String, String)>) {
    let source = match source {
        SourceKind::Wal => "wal",
        SourceKind::Poll => "poll",
        _ => "auto",
    };
    let (code, text) = place.command(&[
        "check",
        "--json",
        "--source",
        source,
        "--create-topics",
        "--topic",
        &place.topic,
    ]);
    let report: Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let findings = report["findings"].as_array().expect("a list").iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let faults = findings
        .filter(|finding| finding["state"] == "fail")
        .map(|finding| (text(&finding["text"]), text(&finding["remedy"])));
    (code, faults.collect())
}

fn options(place: &Place, source: SourceKind) -> RelayOptions {
    RelayOptions {
        source,
        ..place.options()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_of_the_start_is_reported_by_check_with_the_same_text() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    insert(&database.pool, 1..=1).await;
    for case in CASES {
        run(&database.pool, named(case.fault, &place)).await;
        let refusal = Running::start(options(&place, case.source)).refusal().await;
        let (code, faults) = faults_of_check(&place, case.source);
        let message = named(case.message, &place);
        assert!(
            refusal.contains(&message) && refusal.contains(case.remedy),
            "{}: {refusal}",
            case.fault
        );
        assert!(
            code == 1 && !faults.is_empty(),
            "{}: {faults:?}",
            case.fault
        );
        for (text, remedy) in &faults {
            assert!(
                refusal.contains(text) && refusal.contains(remedy),
                "{}: {text} -> {remedy} in {refusal}",
                case.fault
            );
        }
        run(&database.pool, named(case.repair, &place)).await;
    }
    let (code, faults) = faults_of_check(&place, SourceKind::Auto);
    assert_eq!((code, faults), (0, Vec::new()), "everything is repaired");
    let relay = place.start();
    place.reader().until_distinct(1);
    relay.stop().await;
}

/// `check` also finds the faults that the start finds in Kafka.
#[tokio::test(flavor = "multi_thread")]
async fn positions_that_kafka_has_lost_are_reported_by_check_with_the_text_of_the_start() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    insert(&database.pool, 1..=1).await;
    let relay = place.start();
    place.reader().until_distinct(1);
    relay.stop().await;
    assert_eq!(faults_of_check(&place, SourceKind::Auto), (0, Vec::new()));
    run(
        &database.pool,
        "create table kept as select * from tidings.relay".into(),
    )
    .await;
    let row = "update tidings.relay r set kafka_cluster_id = k.kafka_cluster_id, \
        number = k.number from kept k";
    for (fault, message) in [
        (
            "update tidings.relay set kafka_cluster_id = 'another'",
            "published to Kafka cluster another before",
        ),
        (
            "update tidings.relay set number = number + 100",
            "Kafka has lost",
        ),
    ] {
        run(&database.pool, fault.into()).await;
        let refusal = place.start().refusal().await;
        let (code, faults) = faults_of_check(&place, SourceKind::Auto);
        assert!(
            refusal.contains(message) && refusal.contains("rewind --to-mirror"),
            "{refusal}"
        );
        assert!(
            code == 1 && faults.len() == 1 && refusal.contains(&faults[0].0),
            "{faults:?} in {refusal}"
        );
        run(&database.pool, row.into()).await;
    }
    place.start().stop().await;
}

/// Text that is not UTF-8 does not end the relay without a message, and it is not skipped.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_another_encoding_is_read_and_one_without_an_encoding_is_warned_of() {
    for (encoding, warned) in [("LATIN1", false), ("SQL_ASCII", true)] {
        let database = encoded_database(encoding).await;
        let place = Place::new(&database);
        // An e with an acute accent, in the encoding of the database.
        let text = if warned { "Caf\\303\\251" } else { "Caf\\351" };
        let insert = format!(
            "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
             values ('order', convert_from('{text}'::bytea, '{encoding}'), 'T', '1')"
        );
        run(&database.pool, insert.clone()).await;
        let relay = place.start();
        let keys: Vec<String> = place
            .reader()
            .until_distinct(1)
            .iter()
            .map(|record| String::from_utf8_lossy(&record.key).into_owned())
            .collect();
        assert_eq!(keys, ["Caf\u{e9}"], "{encoding}");
        let (code, report) = place.command(&["check", "--create-topics", "--topic", &place.topic]);
        assert!(
            code == 0 && report.contains("encoding is SQL_ASCII") == warned,
            "{report}"
        );
        if warned {
            run(&database.pool, insert.replace("\\303\\251", "\\377")).await;
            let said = relay.refusal().await;
            assert!(
                said.contains("not UTF-8") && said.contains("skip --event"),
                "{said}"
            );
        } else {
            relay.stop().await;
        }
    }
}

/// Row-level security would hide rows from the relay without an error.
#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_of_any_table_of_the_relay_is_refused_and_reported() {
    let database = migrated_database().await;
    let mut place = Place::new(&database);
    let role = format!("r{}", uuid::Uuid::now_v7().simple());
    run(
        &database.pool,
        format!(
            "create role {role} login replication password 'secret';
             grant usage on schema tidings to {role}; grant select, insert, update, \
             delete on all tables in schema tidings to {role}"
        ),
    )
    .await;
    let mut url: url::Url = place.url.parse().expect("a URL");
    url.set_username(&role).expect("set");
    url.set_password(Some("secret")).expect("set");
    place.url = url.to_string();
    for table in ["outbox", "relay", "parked"] {
        run(
            &database.pool,
            format!("alter table tidings.{table} enable row level security"),
        )
        .await;
        let refusal = Running::start(options(&place, SourceKind::Poll))
            .refusal()
            .await;
        let (code, faults) = faults_of_check(&place, SourceKind::Poll);
        assert!(
            refusal.contains(&format!("hides rows of tidings.{table}"))
                && refusal.contains("BYPASSRLS"),
            "{refusal}"
        );
        assert!(
            code == 1 && faults.len() == 1 && refusal.contains(&faults[0].0),
            "{faults:?} in {refusal}"
        );
        run(
            &database.pool,
            format!("alter table tidings.{table} disable row level security"),
        )
        .await;
    }
    run(
        &database.pool,
        format!("drop owned by {role}; drop role {role}"),
    )
    .await;
}

/// A read-only database is not a fault of an event. The relay works again when the database becomes
/// writable.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_is_waited_for_and_reported() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let alter = |value: &str| {
        format!(
            "alter database {} set default_transaction_read_only = {value}",
            database.name
        )
    };
    run(&database.pool, alter("on")).await;
    let relay = place.start();
    relay.says("database", "are read-only").await;
    let (code, faults) = faults_of_check(&place, SourceKind::Auto);
    assert!(
        code == 1
            && faults[0].0.contains("are read-only")
            && faults[0].1.contains("default_transaction_read_only"),
        "{faults:?}"
    );
    let failing =
        |check: &tidings::relay::RelayCheck| matches!(check.state, CheckState::Failing(_));
    assert!(relay.observer.checks().iter().any(failing));
    run(&database.pool, alter("off")).await;
    insert(&database.pool, 1..=1).await;
    place.reader().until_distinct(1);
    relay.stop().await;
}
