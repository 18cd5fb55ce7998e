//! Adding partitions to a topic.

use std::{
    collections::HashMap,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rdkafka::{
    ClientConfig, Message as _,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
};
use sqlx::{AssertSqlSafe, PgPool};

use crate::support::eventually::until_number;
use crate::support::history::{
    Verdict, committed, expected, judge, with_accounts, write_concurrently,
};
use crate::support::records::{Record, grow_topic};
use crate::support::running::{Place, Running};
use crate::support::services::TestDatabase;

/// A consumer group of one member that commits records and keeps them in the order of reading.
struct Group {
    name: String,
    stop: Arc<AtomicBool>,
    read: Arc<Mutex<Vec<Record>>>,
    thread: JoinHandle<()>,
}

impl Group {
    fn start(place: &Place, name: &str) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &place.brokers)
            .set("group.id", name)
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("topic.metadata.refresh.interval.ms", "300")
            .create()
            .expect("a consumer");
        consumer
            .subscribe(&[&place.topic])
            .expect("the subscription succeeds");
        let (stop, read) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Mutex::new(Vec::new())),
        );
        let thread = std::thread::spawn({
            let (stop, read) = (stop.clone(), read.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) else {
                        continue;
                    };
                    read.lock().expect("the lock is not poisoned").push(Record {
                        partition: message.partition(),
                        key: message.key().unwrap_or_default().to_vec(),
                        value: message.payload().map(<[u8]>::to_vec),
                        headers: HashMap::new(),
                        timestamp: 0,
                    });
                    let _ = consumer.commit_message(&message, CommitMode::Async);
                }
                let _ = consumer.commit_consumer_state(CommitMode::Sync);
            }
        });
        Self {
            name: name.to_owned(),
            stop,
            read,
            thread,
        }
    }

    fn stop(self) -> Vec<Record> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the relay ends without an error");
        self.read.lock().expect("the lock is not poisoned").clone()
    }

    async fn until(&self, records: usize) {
        for _ in 0..6_000 {
            if self.read.lock().expect("the lock is not poisoned").len() >= records {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!(
            "{} of {records} records",
            self.read.lock().expect("the lock is not poisoned").len()
        );
    }
}

async fn pinned(pool: &PgPool) -> i32 {
    sqlx::query_scalar("select partitions from tidings.relay_topic")
        .fetch_one(pool)
        .await
        .expect("the query succeeds")
}

/// Returns a database with eight accounts and a relay that has published this number of
/// transactions of each of two writers.
async fn met(transactions: usize) -> (TestDatabase, Place, Running) {
    let (database, place) = with_accounts(8).await;
    let relay = place.start();
    write_concurrently(&database.pool, 2, 8, transactions).await;
    place
        .reader()
        .until_distinct(expected(&committed(&database.pool).await));
    let known = "select count(*) from tidings.relay_topic";
    while sqlx::query_scalar::<_, i64>(known)
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds")
        == 0
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (database, place, relay)
}

/// Returns the name of a group that has read at least one record and then stopped.
async fn stopped_group(place: &Place) -> String {
    let group = Group::start(place, &format!("{}-slow", place.name));
    group.until(1).await;
    let name = group.name.clone();
    group.stop();
    name
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_grows_under_writers_and_readers_and_no_event_is_lost_repeated_or_overtaken() {
    let (database, place, relay) = met(20).await;
    let group = Group::start(&place, &format!("{}-readers", place.name));
    let writing = tokio::spawn({
        let pool = database.pool.clone();
        async move {
            for _ in 0..12 {
                write_concurrently(&pool, 3, 8, 40).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    });
    for partitions in ["7", "11"] {
        let (code, text) = place.command(&[
            "topics",
            "grow",
            &place.topic,
            "--partitions",
            partitions,
            "--yes",
        ]);
        assert!(
            code == 0 && text.contains(&format!("spread over {partitions} partitions")),
            "{text}"
        );
    }
    assert_eq!(pinned(&database.pool).await, 11);
    writing.await.expect("the writers end without an error");
    write_concurrently(&database.pool, 2, 8, 40).await;
    let committed = committed(&database.pool).await;
    group.until(expected(&committed)).await;
    relay.stop().await;
    let read = group.stop();
    let verdict = judge(&committed, &read);
    assert_eq!(
        Verdict {
            in_two_partitions: 0,
            ..verdict
        },
        Verdict::default()
    );
    assert!(
        read.iter().any(|record| record.partition >= 7),
        "the new partitions are used"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_does_not_read_is_waited_for_by_name_and_in_the_end_everything_is_as_before() {
    let (database, place, relay) = met(10).await;
    let name = stopped_group(&place).await;
    write_concurrently(&database.pool, 2, 8, 30).await;
    let (code, text) = place.command(&[
        "topics",
        "grow",
        &place.topic,
        "--partitions",
        "8",
        "--timeout",
        "8s",
        "--yes",
    ]);
    assert!(
        code == 1 && text.contains(&name) && text.contains("--no-wait-for"),
        "{text}"
    );
    assert_eq!(
        (pinned(&database.pool).await, place.reader().partitions()),
        (4, 4)
    );
    write_concurrently(&database.pool, 2, 8, 10).await;
    place
        .reader()
        .until_distinct(expected(&committed(&database.pool).await));
    let (code, text) = place.command(&[
        "topics",
        "grow",
        &place.topic,
        "--partitions",
        "8",
        "--no-wait-for",
        &name,
        "--yes",
    ]);
    assert_eq!(code, 0, "{text}");
    let (code, text) =
        place.command(&["topics", "grow", &place.topic, "--partitions", "6", "--yes"]);
    assert!(code == 3 && text.contains("cannot shrink"), "{text}");
    assert_eq!(pinned(&database.pool).await, 8);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_held_back_for_a_group_that_is_far_from_the_end() {
    let (database, place, relay) = met(10).await;
    let name = stopped_group(&place).await;
    let far = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
        select 'account', 'far', 'T', to_json(n) from generate_series(1, 12000) n";
    sqlx::raw_sql(far)
        .execute(&database.pool)
        .await
        .expect("the insert succeeds");
    let mut reader = place.reader();
    let before = expected(&committed(&database.pool).await) + 12_000;
    reader.until_distinct(before);
    let mut command = place.prepared(&[
        "topics",
        "grow",
        &place.topic,
        "--partitions",
        "8",
        "--timeout",
        "6s",
        "--yes",
    ]);
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let held = "select count(*) from tidings.relay_topic where hold is not null";
    let mut flowing = 0;
    while child
        .try_wait()
        .expect("the process can be polled")
        .is_none()
    {
        assert_eq!(
            sqlx::query_scalar::<_, i64>(held)
                .fetch_one(&database.pool)
                .await
                .expect("the query succeeds"),
            0
        );
        flowing += 1;
        let one = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
            values ('account', 'flowing', 'T', to_json($1))";
        sqlx::query(one)
            .bind(flowing as i64)
            .execute(&database.pool)
            .await
            .expect("the insert succeeds");
        reader.until_distinct(before + flowing);
    }
    let ended = child.wait_with_output().expect("the process ends");
    let text = String::from_utf8(ended.stderr).expect("UTF-8");
    assert!(
        ended.status.code() == Some(1)
            && text.contains("nothing is held back yet")
            && text.contains(&name),
        "{text}"
    );
    assert!(flowing > 1, "events flow meanwhile");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_growth_that_was_interrupted_is_shown_and_run_again_or_aborted_or_ended_by_the_relay() {
    let (database, place, relay) = met(10).await;
    // This group keeps the command waiting.
    let name = stopped_group(&place).await;
    write_concurrently(&database.pool, 2, 8, 30).await;
    let held = "select count(*) from tidings.relay_topic where hold_acknowledged";
    let interrupted = async |timeout: &str| {
        let mut command = place.prepared(&[
            "topics",
            "grow",
            &place.topic,
            "--partitions",
            "8",
            "--timeout",
            timeout,
            "--yes",
        ]);
        let mut child = command
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary starts");
        while sqlx::query_scalar::<_, i64>(held)
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds")
            == 0
        {
            assert_eq!(
                child.try_wait().expect("the process can be polled"),
                None,
                "the command waits"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        child.kill().expect("the kill succeeds");
        child.wait().expect("the process ends");
    };
    interrupted("5m").await;
    let (_, text) = place.command(&["topics", "list"]);
    assert!(
        text.contains("is being grown") && text.contains("holds back its events"),
        "{text}"
    );
    let (_, text) = place.command(&["status"]);
    assert!(
        text.contains(&format!("topic {} is being grown", place.topic)) && text.contains("--abort"),
        "{text}"
    );
    let (code, text) = place.command(&["topics", "grow", &place.topic, "--abort", "--yes"]);
    assert!(code == 0 && text.contains("the hold has ended"), "{text}");
    write_concurrently(&database.pool, 2, 8, 10).await;
    place
        .reader()
        .until_distinct(expected(&committed(&database.pool).await));
    // No operator ends the hold, so the relay ends it.
    interrupted("10s").await;
    write_concurrently(&database.pool, 2, 8, 10).await;
    place
        .reader()
        .until_distinct(expected(&committed(&database.pool).await));
    assert_eq!(pinned(&database.pool).await, 4);
    interrupted("5m").await;
    let (code, text) = place.command(&[
        "topics",
        "grow",
        &place.topic,
        "--partitions",
        "8",
        "--no-wait-for",
        &name,
        "--yes",
    ]);
    assert!(code == 0 && text.contains("hold resumed"), "{text}");
    assert_eq!(pinned(&database.pool).await, 8);
    write_concurrently(&database.pool, 2, 8, 10).await;
    place
        .reader()
        .until_distinct(expected(&committed(&database.pool).await));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_starts_while_its_topic_grows_waits_and_uses_the_new_partitions() {
    let (database, place, relay) = met(10).await;
    // This group keeps the command waiting.
    let name = stopped_group(&place).await;
    write_concurrently(&database.pool, 2, 8, 30).await;
    let mut command = place.prepared(&[
        "topics",
        "grow",
        &place.topic,
        "--partitions",
        "8",
        "--timeout",
        "10m",
        "--hold",
        "10m",
        "--yes",
    ]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let held = "select count(*) from tidings.relay_topic where hold_acknowledged";
    until_number(&database.pool, "the topic is held", held, |n| n == 1).await;
    let other = Place {
        topic: place.topic.clone(),
        ..Place::new(&database)
    };
    let second = other.start();
    let known = "select count(*) from tidings.relay_topic";
    until_number(&database.pool, "both relays use it", known, |n| n == 2).await;
    let (holds, published): (i64, i64) = sqlx::query_as(
        "select count(*) filter (where hold_acknowledged), \
         sum(published) filter (where relay = $1)::bigint from tidings.relay_topic",
    )
    .bind(&other.name)
    .fetch_one(&database.pool)
    .await
    .expect("the query succeeds");
    assert_eq!((holds, published), (2, 0));

    let group = Group::start(&place, &name);
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output())
        .await
        .expect("no panic")
        .expect("the process ends");
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{text}{errors}");
    group.stop();
    let spread = "select count(*) from tidings.relay_topic where partitions = 8 and hold is null";
    until_number(&database.pool, "both use the new number", spread, |n| {
        n == 2
    })
    .await;
    let used = "select count(*) from tidings.relay_topic where published > 0";
    until_number(&database.pool, "both publish", used, |n| n == 2).await;
    relay.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_growth_that_waits_for_a_relay_names_the_process_that_leads() {
    let (database, place, relay) = met(10).await;
    relay.stop().await;
    let grow = |place: &Place| {
        place.command(&[
            "topics",
            "grow",
            &place.topic,
            "--partitions",
            "8",
            "--timeout",
            "3s",
            "--force",
            "--yes",
        ])
    };
    let (code, text) = grow(&place);
    assert!(
        code == 1 && text.contains(&format!("relay {} (no process leads)", place.name)),
        "{text}"
    );
    // A leader that does not respond.
    let mut leader = database.pool.acquire().await.expect("a connection");
    let leads = format!(
        "set application_name = 'tidings lease {0} host:7'; \
         select pg_advisory_lock(hashtextextended('tidings relay tidings.{0}', 0))",
        place.name
    );
    sqlx::raw_sql(AssertSqlSafe(leads))
        .execute(&mut *leader)
        .await
        .expect("the lock is free");
    let (code, text) = grow(&place);
    assert!(
        code == 1 && text.contains(&format!("relay {} (host:7 leads)", place.name)),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_somebody_grew_is_shown_with_the_command_that_uses_its_partitions() {
    let (database, place, relay) = met(10).await;
    grow_topic(&place.brokers, &place.topic, 6).await;
    let (code, text) = place.command(&["topics", "list"]);
    assert!(
        code == 0
            && text.contains(&format!(
                "`tidings topics grow {} --partitions 6`",
                place.topic
            )),
        "{text}"
    );
    let (code, text) =
        place.command(&["topics", "grow", &place.topic, "--partitions", "6", "--yes"]);
    assert_eq!(code, 0, "{text}");
    write_concurrently(&database.pool, 2, 8, 20).await;
    place
        .reader()
        .until_distinct(expected(&committed(&database.pool).await));
    let (_, text) = place.command(&["topics", "list", "--json"]);
    assert!(
        text.contains("\"partitions\": 6") && text.contains("\"partitions_in_kafka\": 6"),
        "{text}"
    );
    relay.stop().await;
}
