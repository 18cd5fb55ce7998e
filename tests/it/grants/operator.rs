//! The role that looks at the state and decides about failed events.

use std::process::{Command, Stdio};

use dev_services::Kafka;
use tidings::subscriber::{Event, HandlerError, Retry, Tx};

use crate::support::place::{Changed, Place, start};
use crate::support::records::create_topic;
use crate::support::rights::{Rights, guarded_kafka, revoke_defaults, run, settings_of};
use crate::support::running;
use crate::support::services::{TestDatabase, migrated_database};

/// The user of the operator in Kafka.
const USER: &str = "operator";

/// Ids of an event and of a saga.
const EVENT: &str = "0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10";
const SAGA: &str = "0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e11";

/// A parked event of the relay `$relay`, one of a subscriber, a failed saga, and the claim of a
/// removed subscriber to sagas.
const STATE: &str = "
    insert into tidings.outbox (id, aggregatetype, aggregateid, type, payload)
        values ('$event', 'order', '7', 'OrderPlaced', '{}');
    insert into tidings.parked (relay, seq, id, aggregatetype, aggregateid, reason)
        select '$relay', seq, id, aggregatetype, aggregateid, 'too large' from tidings.outbox
        where id = '$event';
    insert into tidings.subscriber_parked
        (consumer, topic, partition, record_offset, record_timestamp, key)
        values ('stock', 'order', 0, 1, 0, '7');
    insert into tidings.saga (id, name, version, key, status, state, progress)
        values ('$saga', 'checkout', 1, '7', 'failed', '{}', '{}');
    insert into tidings.saga_code (name, consumer, definition, version, steps, seen_at)
        values ('checkout', 'removed', 'x', 1, '[]', now() - interval '1 day');
";

fn tidings(url: &str, arguments: &[&str], brokers: Option<&Kafka>) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", url)
        .env("USER", "ada")
        .stdin(Stdio::null());
    if let Some(kafka) = brokers {
        let settings = settings_of(USER, kafka);
        command.env("KAFKA_BROKERS", settings.brokers);
        for (name, value) in settings.properties {
            let name = name.to_uppercase().replace('.', "_");
            command.env(format!("TIDINGS_KAFKA_PROPERTIES_{name}"), value);
        }
    }
    let output = tokio::task::block_in_place(|| command.output()).expect("the binary runs");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).expect("UTF-8");
    (output.status.success(), text)
}

/// Runs each command. Returns the first that fails, with its output.
fn first_failure(url: &str, commands: &[&[&str]], brokers: Option<&Kafka>) -> Option<String> {
    commands.iter().find_map(|command| {
        let (is_done, text) = tidings(url, command, brokers);
        (!is_done).then(|| format!("{command:?}: {text}"))
    })
}

/// A relay whose only event is published, on a broker that enforces rights.
async fn published() -> (Kafka, TestDatabase, running::Place) {
    let kafka = guarded_kafka(&[USER]).await;
    let database = migrated_database().await;
    let place = running::Place {
        brokers: kafka.brokers(),
        ..running::Place::new(&database)
    };
    create_topic(&place.brokers, &place.topic, 1).await;
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
        values ('order', '1', 'T', '{}')";
    run(&database.pool, insert.into()).await;
    let relay = place.start();
    place.reader().until_distinct(1);
    relay.stop().await;
    (kafka, database, place)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_needs_exactly_the_printed_grants() {
    let (kafka, database, place) = published().await;
    revoke_defaults(&database).await;
    let rights = Rights::of(&database, &["operator"]);
    let in_kafka = Rights::of_role(&database, USER, &["operator", &place.topic]);
    in_kafka.allow(&kafka);
    rights.grant(&database.pool).await;
    let url = rights.url(&database);
    let name = ["--name", &place.name];
    let parked = |words: &[&'static str]| [&["parked"], words, &name].concat();
    let state = STATE
        .replace("$event", EVENT)
        .replace("$saga", SAGA)
        .replace("$relay", &place.name);
    let reset = "delete from tidings.saga; delete from tidings.saga_code; \
        delete from tidings.subscriber_parked; delete from tidings.parked; \
        delete from tidings.subscriber_control; \
        set tidings.delete_unpublished = on; delete from tidings.outbox where id = ";
    let prepare = async || {
        let mut session = database.pool.acquire().await.expect("a session");
        let sql = format!("{reset} '{EVENT}'; {state} reset tidings.delete_unpublished");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(&mut *session)
            .await
            .expect("the state is restored");
    };
    let verify = ["verify", "--name", &place.name, "--topic", &place.topic];
    let (list, show) = (parked(&["list"]), parked(&["show", "order/7"]));
    let (retry, discard) = (
        parked(&["retry", "order/7"]),
        parked(&["discard", "order/7", "--yes"]),
    );
    let commands: Vec<&[&str]> = vec![
        &["status"],
        &["where", EVENT],
        &["where", EVENT, "--payload"],
        &verify,
        &list,
        &show,
        &retry,
        &discard,
        &["subscribers", "list"],
        &["subscribers", "pause", "stock"],
        &["subscribers", "resume", "stock"],
        &["subscribers", "parked", "show", "order/7"],
        &["subscribers", "parked", "retry", "order/7"],
        &["subscribers", "parked", "discard", "order/7", "--yes"],
        &["sagas", "list"],
        &["sagas", "show", SAGA],
        &["sagas", "retry", SAGA],
        &[
            "sagas",
            "disown",
            "checkout",
            "--subscriber",
            "removed",
            "--yes",
        ],
    ];
    prepare().await;
    let failure = first_failure(&url, &commands, Some(&kafka));
    assert_eq!(failure, None, "with all grants");
    let mut unneeded = Vec::new();
    for right in &rights.sql {
        prepare().await;
        right.revoke(&database.pool).await;
        if first_failure(&url, &commands, Some(&kafka)).is_none() {
            unneeded.push(right);
        }
        right.grant(&database.pool).await;
    }
    assert!(unneeded.is_empty(), "{unneeded:#?}");
    rights.drop_role(&database.pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_needs_each_printed_right_in_kafka() {
    let (kafka, database, place) = published().await;
    let group = format!("g-{}", place.name);
    let arguments = ["operator", &place.topic, "--group", &group];
    let rights = Rights::of_role(&database, USER, &arguments);
    rights.allow(&kafka);
    // Two dead letters, from a subscriber that may do everything.
    let letters = Place::on(kafka.brokers(), 1).await;
    let subscriber = letters
        .bus
        .subscriber(&group)
        .topic::<Changed>(&place.topic);
    async fn dies(_: Event<Changed>, _: Tx) -> Result<(), HandlerError> {
        Err(HandlerError::dead_letter("broken"))
    }
    let inbox = database.pool.clone();
    let running = start!(subscriber.on(dies).inbox(inbox).retry(Retry::never()));
    for version in 1..=2 {
        let mut event = letters.envelope(&Changed {
            account: "a0".into(),
            version,
        });
        event.topic = Some(place.topic.clone());
        letters.send(&[event]).await;
    }
    running
        .until("both are dead", |seen| seen.dead_lettered() == 2)
        .await;
    running.stop().await;
    let dead = format!("{}.{group}.dlt", place.topic);
    let tail = ["tail", &place.topic, "--from-beginning", "--max", "1"];
    let list = ["dead-letters", "list", &dead];
    let replay = ["dead-letters", "replay", &dead, "--all", "--again"];
    let commands: [&[&str]; 3] = [&tail, &list, &replay];
    // The redrive topic is created by the first replay, so its right comes first.
    let (creates, others): (Vec<_>, Vec<_>) = rights
        .acls
        .iter()
        .partition(|acl| acl.operation == dev_services::AclOperation::Create);
    for acl in creates.into_iter().chain(others) {
        kafka.delete_acl(acl).expect("the entry is removed");
        let failure = first_failure(&database.url, &commands, Some(&kafka));
        assert!(failure.is_some(), "without {acl:?}");
        kafka.create_acl(acl).expect("the entry is added");
    }
    let failure = first_failure(&database.url, &commands, Some(&kafka));
    assert_eq!(failure, None, "with all rights");
}
