//! Waits of a subscriber: for a database at start-up and at work, for brokers that keep its
//! instance id, and for a client that hangs.

use std::sync::Arc;
use std::time::Duration;

use dev_services::{KafkaOptions, PostgresOptions};
use rdkafka::consumer::Consumer as _;
use sqlx::postgres::PgPoolOptions;
use tidings::health::{Check, Status, SubscriberCheck};
use tidings::subscriber::{Escalation, Inbox, Retry, RunError, SubscriberState};
use tokio_util::sync::CancellationToken;
use tower::timeout::TimeoutLayer;

use super::members::{ACCOUNTS, Load, enable_broker_side_groups};
use super::process::{Process, slowly};
use crate::support::place::{
    Place, assert_once_and_in_order, count, create_effects, start, until, until_effects,
};
use crate::support::rights::{Rights, run};
use crate::support::services::{
    database, migrated_database, migrated_database_on, own_kafka, own_postgres,
};

// === the database at start-up ===

/// Returns the error of a subscriber that refuses to run on this inbox.
async fn refusal(place: &Place, inbox: impl Into<Inbox>) -> String {
    let running = place
        .subscriber::<()>()
        .on(count)
        .inbox(inbox)
        .run(CancellationToken::new());
    let ended = tokio::time::timeout(Duration::from_secs(60), running)
        .await
        .expect("the subscriber does not wait");
    match ended.expect_err("the subscriber cannot run") {
        RunError::Settings(faults) => faults.join("; "),
        error => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_refuses_a_database_without_tables_columns_or_rights_and_names_the_remedy() {
    let (place, empty, migrated) = (
        Place::new(1).await,
        database().await,
        migrated_database().await,
    );
    let text = refusal(&place, empty.pool.clone()).await;
    assert!(
        text.contains("tidings migrate") && text.contains(&empty.name),
        "{text}"
    );
    let text = refusal(
        &place,
        Inbox::new(migrated.pool.clone()).schema("elsewhere"),
    )
    .await;
    assert!(
        text.contains("`elsewhere`") && text.contains("Inbox::schema"),
        "{text}"
    );
    let rights = Rights::of(
        &migrated,
        &["subscriber", &place.topic, "--group", &place.group],
    );
    rights.grant(&migrated.pool).await;
    let role = rights.role.clone();
    let pool = migrated.pool_as(&role).await;
    for table in [
        "inbox",
        "inbox_collision",
        "subscriber_parked",
        "subscriber",
    ] {
        run(
            &migrated.pool,
            format!("revoke insert on tidings.{table} from {role}"),
        )
        .await;
        let text = refusal(&place, pool.clone()).await;
        assert!(
            text.contains(&format!("grant insert on tidings.{table} to \"{role}\"")),
            "{text}"
        );
        run(
            &migrated.pool,
            format!("grant insert on tidings.{table} to {role}"),
        )
        .await;
    }
    run(
        &migrated.pool,
        format!("revoke select on tidings.subscriber_control from {role}"),
    )
    .await;
    let text = refusal(&place, pool.clone()).await;
    assert!(
        text.contains(&format!(
            "grant select on tidings.subscriber_control to \"{role}\""
        )),
        "{text}"
    );
    run(
        &migrated.pool,
        "alter table tidings.subscriber_parked drop column decided_by".into(),
    )
    .await;
    let text = refusal(&place, pool.clone()).await;
    assert!(
        text.contains("earlier version (subscriber_parked)") && text.contains("tidings migrate"),
        "{text}"
    );
    drop(pool);
    run(
        &migrated.pool,
        format!("drop owned by {role}; drop role {role}"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_down_or_read_only_at_the_start_is_shown_by_state_and_health() {
    let mut server = own_postgres(PostgresOptions::default()).await;
    let (database, place) = (
        migrated_database_on(&server.url()).await,
        Place::new(2).await,
    );
    create_effects(&database.pool).await;
    run(
        &database.pool,
        format!(
            "alter database {} set default_transaction_read_only = on",
            database.name
        ),
    )
    .await;
    let pool = PgPoolOptions::new()
        .connect_lazy(&database.url)
        .expect("a URL");
    tokio::task::block_in_place(|| server.stop()).expect("the service stops");
    let running = start!(place.subscriber::<()>().on(count).inbox(pool));
    let names = |reason: &str| {
        let reason = reason.to_owned();
        move |seen: &tidings::subscriber::Statistics| {
            seen.reason().is_some_and(|text| text.contains(&reason))
        }
    };
    running
        .until("its state names the database", names("cannot be used"))
        .await;
    assert_eq!(running.statistics.state(), SubscriberState::Starting);
    let Status::Degraded(text) = SubscriberCheck::new(&running.statistics).check().await else {
        panic!("the check is not degraded")
    };
    assert!(text.contains(&database.name), "{text}");
    place.publish(5, 1..=4).await;
    tokio::task::block_in_place(|| server.start_again()).expect("the service starts");
    running
        .until("its state names the mode", names("read-only"))
        .await;
    let mut admin = until("a session", async || database.pool.acquire().await.ok()).await;
    let reset = format!(
        "set transaction read write; alter database {} reset default_transaction_read_only",
        database.name
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("begin; {reset}; commit")))
        .execute(&mut *admin)
        .await
        .expect("the statement succeeds");
    running
        .until("all are handled", |seen| seen.handled() == 20)
        .await;
    assert_eq!(running.statistics.state(), SubscriberState::Running);
    running.stop().await;
}

/// The brokers are unreachable.
#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_do_not_answer_are_shown_by_state_and_health() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    let brokers = "127.0.0.1:1".to_owned();
    let bus = tidings::Bus::new(tidings::kafka::Settings {
        brokers,
        ..tidings::kafka::Settings::default()
    });
    let subscriber = bus
        .subscriber(&place.group)
        .topic::<crate::support::place::Changed>(&place.topic);
    let running = start!(subscriber.on(count).inbox(database.pool.clone()));
    running
        .until("its state names the brokers", |seen| {
            seen.reason()
                .is_some_and(|text| text.contains("127.0.0.1:1"))
        })
        .await;
    assert_eq!(running.statistics.state(), SubscriberState::Starting);
    running.stop().await;
}

// === the database at work ===

/// The layer cuts off each attempt several times while the database hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_time_out_while_the_database_hangs_is_an_outage_and_no_failed_attempt() {
    let mut server = own_postgres(PostgresOptions::default()).await;
    let (database, place) = (
        migrated_database_on(&server.url()).await,
        Place::new(2).await,
    );
    create_effects(&database.pool).await;
    let pool = PgPoolOptions::new()
        .max_connections(8)
        .connect(&database.url)
        .await
        .expect("the connection succeeds");
    let subscriber = place
        .subscriber::<()>()
        .on(slowly)
        .inbox(pool)
        .retry(Retry::exponential(
            2,
            Duration::from_millis(5)..Duration::from_millis(10),
        ));
    let subscriber = subscriber
        .escalation(Escalation::DeadLetter)
        .layer(TimeoutLayer::new(Duration::from_millis(700)));
    let running = start!(subscriber);
    place.publish(10, 1..=2).await;
    running
        .until("the first are handled", |seen| seen.handled() == 20)
        .await;
    tokio::task::block_in_place(|| server.pause()).expect("the server is paused");
    place.publish(10, 3..=6).await;
    running
        .until("it pauses", |seen| {
            seen.state() == SubscriberState::PausedByOutage
        })
        .await;
    // An outage of this length would use up the attempts of each event.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(running.statistics.state(), SubscriberState::PausedByOutage);
    tokio::task::block_in_place(|| server.resume()).expect("the server resumes");
    running
        .until("all are handled", |seen| {
            seen.handled() + seen.duplicates() >= 60
        })
        .await;
    assert_eq!(
        (
            running.statistics.failed_attempts(),
            running.statistics.dead_lettered()
        ),
        (0, 0)
    );
    running.stop().await;
    assert_once_and_in_order(&database.pool, 10, 6).await;
}

/// The server cancels statements because it hung.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_time_out_of_a_database_that_hung_is_an_outage() {
    let mut server = own_postgres(PostgresOptions::default()).await;
    let (database, place) = (
        migrated_database_on(&server.url()).await,
        Place::new(1).await,
    );
    create_effects(&database.pool).await;
    let options: sqlx::postgres::PgConnectOptions = database.url.parse().expect("a URL");
    let pool = PgPoolOptions::new()
        .max_connections(4)
        .connect_with(options.options([("statement_timeout", "1500")]))
        .await
        .expect("the connection succeeds");
    let subscriber = place
        .subscriber::<()>()
        .on(sleepy)
        .inbox(pool)
        .retry(Retry::never())
        .escalation(Escalation::DeadLetter);
    let running = start!(subscriber);
    place.publish(3, 1..=1).await;
    let busy = "select count(*) from pg_stat_activity where datname = current_database() \
        and query like 'select pg_sleep%' and state = 'active'";
    until("statements run", async || {
        (sqlx::query_scalar::<_, i64>(busy)
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds")
            == 3)
            .then_some(())
    })
    .await;
    tokio::task::block_in_place(|| server.pause()).expect("the server is paused");
    tokio::time::sleep(Duration::from_secs(4)).await;
    tokio::task::block_in_place(|| server.resume()).expect("the server resumes");
    running
        .until("all are handled", |seen| seen.handled() == 3)
        .await;
    assert_eq!(
        (
            running.statistics.failed_attempts(),
            running.statistics.dead_lettered()
        ),
        (0, 0)
    );
    running.stop().await;
}

/// Takes a second of the server's time.
async fn sleepy(
    tidings::subscriber::Event(changed): tidings::subscriber::Event<crate::support::place::Changed>,
    meta: tidings::subscriber::Meta,
    mut tx: tidings::subscriber::Tx,
) -> Result<(), tidings::subscriber::HandlerError> {
    sqlx::query("select pg_sleep(1)").execute(&mut *tx).await?;
    crate::support::place::effect(&mut tx, &changed, &meta).await
}

/// A statement that is slow by itself costs its event an attempt, and no other event waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_time_out_of_a_slow_statement_is_a_failed_attempt_of_its_event_alone() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    let subscriber = place
        .subscriber::<()>()
        .on(sleepy)
        .inbox(database.pool.clone())
        .retry(Retry::never());
    let subscriber = subscriber
        .escalation(Escalation::DeadLetter)
        .layer(TimeoutLayer::new(Duration::from_millis(300)));
    let running = start!(subscriber);
    place.publish(2, 1..=1).await;
    running
        .until("they are dead", |seen| seen.dead_lettered() == 2)
        .await;
    assert_eq!(running.statistics.failed_attempts(), 2);
    running.stop().await;
}

// === the instance id ===

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_id_that_brokers_keep_for_a_killed_process_is_waited_for() {
    let times = [
        ("group.consumer.min.session.timeout.ms", "8000"),
        ("group.consumer.session.timeout.ms", "8000"),
        ("group.consumer.heartbeat.interval.ms", "2000"),
        ("group.consumer.min.heartbeat.interval.ms", "1000"),
    ];
    let broker = own_kafka(
        times
            .iter()
            .fold(KafkaOptions::new(), |all, (name, value)| {
                all.set(*name, *value)
            }),
    )
    .await;
    enable_broker_side_groups(&broker.brokers());
    let (database, place) = (
        migrated_database().await,
        Arc::new(Place::on(broker.brokers(), 4).await),
    );
    create_effects(&database.pool).await;
    let load = Load::start(&place);
    let killed = Process::start_as(
        &place,
        &database,
        &[
            ("MEMBER_INSTANCE", "one"),
            ("MEMBER_BROKER_SIDE", "1"),
            ("MEMBER_DEFAULTS", "1"),
        ],
    );
    until_effects(&database.pool, 100).await;
    killed.kill();
    let next = start!(
        place
            .subscriber::<()>()
            .on(slowly)
            .inbox(database.pool.clone())
            .instance_id("one")
            .broker_side_rebalance()
    );
    next.until("its state names the id", |seen| {
        seen.reason().is_some_and(|reason| reason.contains("`one`"))
    })
    .await;
    next.until("it takes part", |seen| {
        seen.handled() > 0 && seen.state() == SubscriberState::Running
    })
    .await;
    let versions = load.end(&database.pool).await;
    next.stop().await;
    assert_once_and_in_order(&database.pool, ACCOUNTS, versions).await;
}

/// Two processes share one id.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_with_the_same_instance_id_ends_the_first_with_a_remedy() {
    let (database, place) = (migrated_database().await, Place::new(2).await);
    create_effects(&database.pool).await;
    let build = || {
        place
            .subscriber::<()>()
            .on(count)
            .inbox(database.pool.clone())
            .instance_id("one")
    };
    let first = build();
    let statistics = first.statistics();
    let first = tokio::spawn(first.run(CancellationToken::new()));
    until("the first takes part", async || {
        (!statistics.partitions().is_empty()).then_some(())
    })
    .await;
    let second = start!(build());
    let ended = tokio::time::timeout(Duration::from_secs(60), first)
        .await
        .expect("the process ends")
        .expect("the task does not panic");
    let error = ended.expect_err("the first process is fenced").to_string();
    assert!(
        error.contains("`one`") && error.contains("an instance id of its own"),
        "{error}"
    );
    assert_eq!(statistics.state(), SubscriberState::Stopped);
    place.publish(2, 1..=1).await;
    until_effects(&database.pool, 2).await;
    second.stop().await;
}

// === the client ===

/// Returns the ids of the members of a group.
async fn members(place: &Place) -> Vec<String> {
    let (brokers, group) = (place.brokers.clone(), place.group.clone());
    let asked = tokio::task::spawn_blocking(move || {
        let client: rdkafka::consumer::BaseConsumer = rdkafka::ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .create()
            .expect("a client");
        let groups = client
            .fetch_group_list(Some(&group), Duration::from_secs(10))
            .ok()?;
        Some(
            groups
                .groups()
                .first()?
                .members()
                .iter()
                .map(|member| member.id().to_owned())
                .collect(),
        )
    });
    asked
        .await
        .expect("the task does not panic")
        .unwrap_or_default()
}

/// A poll of the member's client never returns, which can happen after a step of the clock.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_client_hangs_is_replaced_and_repeats_nothing() {
    let (database, place) = (migrated_database().await, Arc::new(Place::new(4).await));
    create_effects(&database.pool).await;
    let load = Load::start(&place);
    let hanging = Process::start_as(
        &place,
        &database,
        &[("TIDINGS_TEST_HANG_IN", "member_poll:100")],
    );
    let first = until("it has joined", async || {
        members(&place).await.into_iter().next()
    })
    .await;
    until("another member of the process has joined", async || {
        let members = members(&place).await;
        (!members.is_empty() && !members.contains(&first)).then_some(())
    })
    .await;
    let versions = load.end(&database.pool).await;
    hanging.stop().await;
    assert_once_and_in_order(&database.pool, ACCOUNTS, versions).await;
    // The new member has committed the events that both handled.
    let next = start!(
        place
            .subscriber::<()>()
            .on(count)
            .inbox(database.pool.clone())
    );
    place.publish(ACCOUNTS, versions + 1..=versions + 1).await;
    next.until("only new events come", |seen| {
        seen.handled() == ACCOUNTS as u64
    })
    .await;
    assert_eq!(next.statistics.duplicates(), 0);
    next.stop().await;
}
