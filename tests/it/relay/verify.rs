//! `tidings verify`, `tail` and `publish` on real services. Each fault is planted in the topic.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::AdminOptions,
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _},
};
use serde_json::Value;
use sqlx::PgPool;
use tidings::relay::TopicRewrite;
use uuid::Uuid;

use super::operator::{published, ran};
use super::parked::{publish, sql, until_parked};
use crate::support::history::{with_accounts, write, write_concurrently};
use crate::support::http;
use crate::support::records::{
    NEVER_AT_THE_END, Record, Writing, admin, create_topic, delete_topic,
};
use crate::support::running::{Place, Running};
use crate::support::services::{migrated_database, signal};

/// Time limit of a wait.
const PATIENCE: Duration = Duration::from_secs(120);

/// The exit code for a difference.
const DIFFERENT: i32 = 5;

/// Runs `tidings verify`. Returns its exit code and report.
fn verify(place: &Place, arguments: &[&str]) -> (i32, Value) {
    verify_with(place, arguments, &[])
}

/// Same as [`verify`], with these environment variables.
fn verify_with(place: &Place, arguments: &[&str], variables: &[(&str, &str)]) -> (i32, Value) {
    let mut command = place.prepared(&[&["verify", "--json"], arguments].concat());
    command.env("TIDINGS_ROUTING_TOPIC", &place.topic);
    command.envs(variables.iter().copied());
    let output = command.output().expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let report = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().expect("a code"), report)
}

/// Returns the counts that are not zero, among those that matter for a verdict.
fn counts(report: &Value) -> HashMap<&str, u64> {
    let ignored = ["committed", "records", "delivered", "scheduled", "seconds"];
    let fields = report.as_object().expect("an object").iter();
    fields
        .filter(|(name, _)| !ignored.contains(&name.as_str()))
        .filter_map(|(name, value)| Some((name.as_str(), value.as_u64()?)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// Sends records to the topic outside any transaction.
fn produce(place: &Place, records: &[Record]) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &place.brokers)
        .set("enable.idempotence", "true")
        .create()
        .expect("a producer");
    for record in records {
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header {
                    key,
                    value: Some(value),
                })
            });
        let mut sent = BaseRecord::to(&place.topic)
            .key(&record.key)
            .partition(record.partition)
            .timestamp(record.timestamp)
            .headers(headers);
        if let Some(value) = &record.value {
            sent = sent.payload(value);
        }
        producer
            .send(sent)
            .map_err(|(error, _)| error)
            .expect("queued");
    }
    producer.flush(PATIENCE).expect("acknowledged");
}

/// Replaces the topic by one with other records.
async fn rewrite(place: &Place, records: &[Record]) {
    delete_topic(&place.brokers, &place.topic).await;
    create_topic(&place.brokers, &place.topic, 4).await;
    produce(place, records);
}

/// Publishes three events of one aggregate in one transaction and two in transactions of their own.
async fn five_events(pool: &PgPool, place: &Place) -> Vec<Record> {
    let relay = place.start();
    let three = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
        select 'order', 'a', 'T', json_build_object('n', n) from generate_series(1, 3) n";
    sql(pool, three).await;
    publish(pool, "a", 4, 1).await;
    publish(pool, "a", 5, 1).await;
    published(pool, place, 5).await;
    relay.stop().await;
    place.reader().read_to_the_end().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_matches_at_any_moment_while_events_flow() {
    let (database, place) = with_accounts(20).await;
    let relay = place.start();
    write(&database.pool, 99, 20, 20).await;
    published(&database.pool, &place, 10).await;
    let pool = database.pool.clone();
    let writing = tokio::spawn(async move { write_concurrently(&pool, 4, 20, 300).await });
    let mut during = 0;
    while !writing.is_finished() || during < 2 {
        let (code, report) = verify(&place, &[]);
        assert_eq!(code, 0, "{report:#}");
        assert!(report["delivered"].as_u64() > Some(0), "{report:#}");
        during += 1;
    }
    writing.await.expect("the writers end");
    let mut reader = place.reader();
    relay.verdict(&database.pool, &mut reader).await;
    let (code, report) = verify(&place, &["--writers-lock"]);
    assert_eq!((code, counts(&report)), (0, HashMap::new()), "{report:#}");
    assert_eq!(report["committed"], report["delivered"]);
    let (code, report) = verify(&place, &["--since", "1h"]);
    assert_eq!((code, counts(&report)), (0, HashMap::new()), "{report:#}");
    assert!(report["delivered"].as_u64() > Some(100), "{report:#}");
    // Events that no relay has published yet are not lost.
    let before = count(&database.pool).await;
    write(&database.pool, 7, 20, 20).await;
    let waiting = (count(&database.pool).await - before).cast_unsigned();
    let (code, report) = verify(&place, &["--writers-lock"]);
    let expected = HashMap::from([("waiting", waiting)]);
    assert_eq!((code, counts(&report)), (0, expected), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_a_topic_is_found_and_named() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let good = five_events(&database.pool, &place).await;
    let id = |record: &Record| record.headers["ce_id"].clone();
    assert_eq!(verify(&place, &[]).0, 0);
    let faults: [(&str, Vec<Record>, Option<String>); 4] = [
        (
            "lost",
            [&good[..2], &good[3..]].concat(),
            Some(id(&good[2])),
        ),
        (
            "repeated",
            [&good[..], &good[1..2]].concat(),
            Some(id(&good[1])),
        ),
        // Two events of one transaction.
        (
            "reordered",
            [&good[1..2], &good[..1], &good[2..]].concat(),
            Some(id(&good[0])),
        ),
        (
            "never_committed",
            {
                let mut rolled_back = good[4].clone();
                let other = Uuid::now_v7().to_string();
                rolled_back.headers.insert("ce_id".into(), other);
                [&good[..], &[rolled_back]].concat()
            },
            None,
        ),
    ];
    for (kind, records, event) in faults {
        rewrite(&place, &records).await;
        for arguments in [&[][..], &["--since", "1h"][..]] {
            let (code, report) = verify(&place, arguments);
            assert_eq!(code, DIFFERENT, "{kind}: {report:#}");
            assert_eq!(counts(&report), HashMap::from([(kind, 1)]), "{report:#}");
            let finding = &report["findings"][0];
            assert_eq!(finding["kind"], kind);
            assert_eq!(finding["topic"], *place.topic);
            if let Some(event) = &event {
                assert_eq!(finding["event"], **event, "{report:#}");
                assert_eq!(finding["aggregate"], "order/a");
            }
        }
    }
    // A record of another source in the same topic.
    let mut other = good[0].clone();
    other
        .headers
        .insert("ce_id".into(), Uuid::now_v7().to_string());
    other
        .headers
        .insert("ce_source".into(), "/elsewhere".into());
    rewrite(&place, &[&good[..], &[other]].concat()).await;
    let (code, report) = verify(&place, &[]);
    assert_eq!(
        (code, counts(&report)),
        (0, HashMap::from([("foreign", 1)])),
        "{report:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_the_guarantees_allow_is_not_a_fault_unless_the_writers_lock() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let good = five_events(&database.pool, &place).await;
    // Two events of two transactions.
    let swapped = [&good[..3], &good[4..], &good[3..4]].concat();
    rewrite(&place, &swapped).await;
    let (code, report) = verify(&place, &[]);
    let undecided = HashMap::from([("order_undecided", 1)]);
    assert_eq!((code, counts(&report)), (0, undecided), "{report:#}");
    let (code, report) = verify(&place, &["--writers-lock"]);
    let reordered = HashMap::from([("reordered", 1)]);
    assert_eq!(
        (code, counts(&report)),
        (DIFFERENT, reordered),
        "{report:#}"
    );
    assert_eq!(report["findings"][0]["event"], *good[3].headers["ce_id"]);
    assert_eq!(report["findings"][0]["behind"], *good[4].headers["ce_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_or_the_outbox_no_longer_has_is_reported_as_not_verifiable() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let good = five_events(&database.pool, &place).await;
    // Kafka deletes the first two records.
    let mut before = TopicPartitionList::new();
    let partition = good[0].partition;
    before
        .add_partition_offset(&place.topic, partition, Offset::Offset(2))
        .expect("a partition");
    admin(&place.brokers)
        .delete_records(&before, &AdminOptions::new())
        .await
        .expect("the records are deleted");
    let (code, report) = verify(&place, &[]);
    assert_eq!((code, counts(&report)["trimmed"]), (0, 2), "{report:#}");
    assert_eq!(report["gaps"][0]["reason"], "trimmed");
    assert_eq!(report["gaps"][0]["partition"], partition);
    // Retention deletes the rows.
    let mut options = place.options();
    options.retention.keep = Duration::from_millis(10);
    let relay = Running::start(options);
    let until = Instant::now() + PATIENCE;
    // One row remains as the witness.
    while count(&database.pool).await > 1 {
        assert!(Instant::now() < until, "retention deletes nothing");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    relay.stop().await;
    let (code, report) = verify(&place, &[]);
    assert_eq!(
        (code, counts(&report)),
        (0, HashMap::from([("without_row", 2)])),
        "{report:#}"
    );
    // A younger record without a row is still a fault.
    let mut rolled_back = good[0].clone();
    let now = chrono::Utc::now() + chrono::TimeDelta::seconds(1);
    rolled_back.timestamp = now.timestamp_millis();
    rolled_back
        .headers
        .insert("ce_time".into(), now.to_rfc3339());
    rolled_back
        .headers
        .insert("ce_id".into(), Uuid::now_v7().to_string());
    produce(&place, &[rolled_back]);
    let (code, report) = verify(&place, &[]);
    assert_eq!(
        (code, counts(&report)["never_committed"]),
        (DIFFERENT, 1),
        "{report:#}"
    );
    delete_topic(&place.brokers, &place.topic).await;
    let (code, report) = verify(&place, &[]);
    assert_eq!(
        (code, counts(&report)["without_topic"]),
        (0, 1),
        "{report:#}"
    );
}

async fn count(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from tidings.outbox")
        .fetch_one(pool)
        .await
        .expect("the query succeeds")
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_and_discarded_events_are_accounted_for() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    let mut options = place.options();
    options.message_bytes_max = 10_000;
    let relay = Running::start(options);
    publish(pool, "a", 1, 1).await;
    publish(pool, "a", 2, 20_000).await;
    publish(pool, "a", 3, 1).await;
    until_parked(pool, &[("a", 2, true), ("a", 3, false)]).await;
    published(pool, &place, 1).await;
    let (code, report) = verify(&place, &[]);
    assert_eq!(
        (code, counts(&report)),
        (0, HashMap::from([("parked", 2)])),
        "{report:#}"
    );
    let discard = "update tidings.parked set action = 'discard' where reason is not null";
    sql(pool, discard).await;
    until_parked(pool, &[]).await;
    place.reader().until_distinct(2);
    relay.stop().await;
    let (code, report) = verify(&place, &["--writers-lock"]);
    assert_eq!(
        (code, counts(&report)),
        (0, HashMap::from([("discarded", 1)])),
        "{report:#}"
    );
    assert_eq!(report["delivered"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn skipped_and_rewound_events_are_accounted_for() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, ran(&database, 1..=5).await);
    publish(pool, "one", 1, 1).await;
    publish(pool, "two", 1, 1).await;
    let one: Uuid = sqlx::query_scalar("select id from tidings.outbox where aggregateid = 'one'")
        .fetch_one(pool)
        .await
        .expect("the query succeeds");
    let (code, text) = place.command(&["relay", "skip", "--event", &one.to_string(), "--yes"]);
    assert_eq!(code, 0, "{text}");
    let relay = place.start();
    published(pool, &place, 6).await;
    relay.stop().await;
    let (code, report) = verify(&place, &[]);
    assert_eq!(
        (code, counts(&report)),
        (0, HashMap::from([("skipped", 1)])),
        "{report:#}"
    );
    publish(pool, "three", 1, 1).await;
    assert_eq!(place.command(&["relay", "skip", "--all", "--yes"]).0, 0);
    let relay = place.start();
    publish(pool, "four", 1, 1).await;
    published(pool, &place, 7).await;
    relay.stop().await;
    let (code, report) = verify(&place, &[]);
    assert_eq!(
        (code, counts(&report)),
        (0, HashMap::from([("skipped", 2)])),
        "{report:#}"
    );
    assert_eq!(place.command(&["relay", "rewind", "--all", "--yes"]).0, 0);
    let relay = place.start();
    // A rewind repeats the skipped events too, which have no record yet.
    published(pool, &place, 7 + 9).await;
    relay.stop().await;
    let (code, report) = verify(&place, &[]);
    let counts = counts(&report);
    assert_eq!((code, counts["repeated_on_purpose"]), (0, 7), "{report:#}");
    assert!(!counts.contains_key("repeated"), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_recognized_in_every_envelope_and_in_dead_letters() {
    use tidings::relay::{EnvelopeFormat, OnUndeliverable, SourceKind};
    for envelope in [
        EnvelopeFormat::CloudEvents,
        EnvelopeFormat::CloudEventsStructured,
        EnvelopeFormat::Debezium,
    ] {
        let database = migrated_database().await;
        let (pool, place) = (&database.pool, Place::new(&database));
        let mut options = place.options();
        options.envelope = envelope;
        options.source = SourceKind::Poll;
        options.message_bytes_max = 10_000;
        options.undeliverable.policy = OnUndeliverable::DeadLetter;
        let relay = Running::start(options);
        for n in 1..=3 {
            publish(pool, "a", n, 1).await;
        }
        publish(pool, "a", 4, 20_000).await;
        publish(pool, "a", 5, 1).await;
        published(pool, &place, 5).await;
        relay.stop().await;
        let (code, report) = verify(&place, &["--writers-lock"]);
        let letters = HashMap::from([("dead_lettered", 1)]);
        assert_eq!(
            (code, counts(&report)),
            (0, letters),
            "{envelope:?} {report:#}"
        );
        assert_eq!(report["delivered"], 4);
    }
}

/// `tidings verify --follow` in a process.
struct Follower {
    child: Child,
    metrics: String,
}

impl Follower {
    fn start(place: &Place) -> Self {
        let mut command = place.prepared(&[
            "verify",
            "--follow",
            "--every",
            "100ms",
            "--listen",
            "127.0.0.1:0",
        ]);
        let mut child = command
            .env("TIDINGS_ROUTING_TOPIC", &place.topic)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut line = String::new();
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        while !line.contains("metrics on http://") {
            line.clear();
            assert!(stderr.read_line(&mut line).expect("text") > 0, "it ended");
        }
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        let address = line.split("http://").nth(1).expect("an address");
        let address = address.trim().trim_end_matches("/metrics").to_owned();
        Self {
            child,
            metrics: address,
        }
    }

    /// Waits until a metric has a value that `accepts`.
    async fn until(&self, metric: &str, accepts: impl Fn(f64) -> bool) {
        let until = Instant::now() + PATIENCE;
        loop {
            let (_, text) = http::ask(&self.metrics, "GET", "/metrics", "");
            let value = text
                .lines()
                .find_map(|line| line.strip_prefix(metric)?.trim().parse().ok());
            if value.is_some_and(&accepts) {
                return;
            }
            assert!(Instant::now() < until, "{metric}: {text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn stop(mut self) -> i32 {
        signal(self.child.id(), "TERM");
        let status = self.child.wait().expect("the process ends");
        status.code().expect("a code")
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_that_follows_advances_with_the_events_and_stops_at_a_fault() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    let old = five_events(pool, &place).await;
    let relay = place.start();
    let follower = Follower::start(&place);
    let until = "tidings_verified_until_seconds";
    follower.until(until, |seconds| seconds > 0.0).await;
    for n in 6..12 {
        publish(pool, "a", n, 1).await;
        let now = chrono::Utc::now().timestamp_millis() as f64 / 1_000.0;
        follower.until(until, |seconds| seconds > now).await;
    }
    let lost = r#"tidings_verify_findings_total{kind="lost"}"#;
    let repeated = r#"tidings_verify_findings_total{kind="repeated"}"#;
    follower.until(lost, |count| count == 0.0).await;
    follower.until(repeated, |count| count == 0.0).await;
    // A copy of an event that an earlier round has verified.
    produce(&place, &old[..1]);
    follower.until(repeated, |count| count == 1.0).await;
    relay.stop().await;
    assert_eq!(follower.stop(), DIFFERENT);
}

/// Its insert is older than the last verified time, and its transaction ends later.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_commits_late_is_verified_after_a_failed_round() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    let relay = place.start();
    publish(pool, "a", 1, 1).await;
    published(pool, &place, 1).await;
    let follower = Follower::start(&place);
    let until = "tidings_verified_until_seconds";
    follower.until(until, |seconds| seconds > 0.0).await;
    let mut late = pool.begin().await.expect("a transaction");
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
        values ('order', 'late', 'T', '1')";
    sqlx::query(insert)
        .execute(&mut *late)
        .await
        .expect("the insert succeeds");
    publish(pool, "a", 2, 1).await;
    let now = chrono::Utc::now().timestamp_millis() as f64 / 1_000.0;
    follower.until(until, |seconds| seconds > now).await;
    sql(pool, "alter table tidings.relay_decision rename to away").await;
    let failed = r#"tidings_verify_rounds_total{outcome="failed"}"#;
    follower.until(failed, |count| count >= 1.0).await;
    late.commit().await.expect("the commit succeeds");
    published(pool, &place, 3).await;
    relay.stop().await;
    let records = place.reader().read_to_the_end().to_vec();
    let others: Vec<Record> = records
        .iter()
        .filter(|record| record.key != b"late")
        .cloned()
        .collect();
    assert_eq!((records.len(), others.len()), (3, 2));
    rewrite(&place, &others).await;
    sql(pool, "alter table tidings.away rename to relay_decision").await;
    let lost = r#"tidings_verify_findings_total{kind="lost"}"#;
    follower.until(lost, |count| count >= 1.0).await;
    assert_eq!(follower.stop(), DIFFERENT);
}

/// Other programs write to the topic too.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_written_without_pause_is_verified_to_the_end_that_it_had() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    five_events(&database.pool, &place).await;
    let writing = Writing::start(&place.brokers, &place.topic);
    writing.until_more(100).await;
    let (code, report) =
        tokio::task::block_in_place(|| verify_with(&place, &[], &NEVER_AT_THE_END));
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(report["delivered"], 5, "{report:#}");
    assert!(report["foreign"].as_u64() >= Some(100), "{report:#}");
    writing.until_more(100).await;
    writing.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_events_are_searched_for_where_the_relay_publishes() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let mut options = place.options();
    options.topic = "unused-{aggregatetype}".into();
    options.topic_rewrite =
        Some(TopicRewrite::parse("(.*)er", &place.topic).expect("a rewrite rule"));
    let relay = Running::start(options);
    for n in 1..=3 {
        publish(&database.pool, "a", n, 1).await;
    }
    published(&database.pool, &place, 3).await;
    relay.stop().await;
    let good = place.reader().read_to_the_end().to_vec();
    let configured = |regex: &str| {
        let mut command = place.prepared(&["verify", "--json"]);
        command
            .env("TIDINGS_ROUTING_TOPIC", "unused-{aggregatetype}")
            .env("TIDINGS_ROUTING_REGEX", regex)
            .env("TIDINGS_ROUTING_REPLACEMENT", &*place.topic);
        let output = command.output().expect("the binary runs");
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code().expect("a code"),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    assert_eq!(configured("(.*)er").0, 0);
    rewrite(&place, &[&good[..1], &good[2..]].concat()).await;
    let (code, report, _) = configured("(.*)er");
    let report: Value = serde_json::from_str(&report).expect(&report);
    assert_eq!((code, &report["lost"]), (DIFFERENT, &Value::from(1)));
    assert_eq!(report["findings"][0]["topic"], *place.topic, "{report:#}");
    // The first record was deleted by Kafka. Another rule does not show whether it was this event.
    rewrite(&place, &good).await;
    let mut before = TopicPartitionList::new();
    before
        .add_partition_offset(&place.topic, good[0].partition, Offset::Offset(1))
        .expect("a partition");
    admin(&place.brokers)
        .delete_records(&before, &AdminOptions::new())
        .await
        .expect("the record is deleted");
    let (code, report, _) = configured("(.*)er");
    let report: Value = serde_json::from_str(&report).expect(&report);
    assert_eq!((code, &report["trimmed"]), (0, &Value::from(1)));
    let (code, _, error) = configured("(.*)x");
    assert!(code != 0 && code != DIFFERENT, "{code}: {error}");
    assert!(
        error.contains("routing.regex") && error.contains(&*place.topic),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_published_by_command_is_printed_by_tail() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let relay = place.start();
    let publish = |arguments: &[&str]| {
        let fixed = ["publish", "OrderPlaced", "--aggregate", "order/7"];
        place.command(&[&fixed, arguments].concat())
    };
    let payload = r#"{"total_cents": 1999}"#;
    let (code, id) = publish(&["--payload", payload, "--header", "tenant=acme"]);
    assert_eq!(code, 0, "{id}");
    published(&database.pool, &place, 1).await;
    // The topic is known from the database.
    let tail = ["tail", "--from-beginning", "--max", "1"];
    let (code, line) = place.command(&[&tail[..], &["--json"]].concat());
    let event: Value = serde_json::from_str(&line).expect(&line);
    assert_eq!(
        (
            code,
            &event["id"],
            &event["aggregate_id"],
            &event["payload"]["total_cents"]
        ),
        (0, &Value::from(id.trim()), &"7".into(), &1999.into()),
        "{line}"
    );
    assert_eq!(event["headers"]["tenant"], "acme");
    let (code, text) = place.command(&tail);
    assert!(code == 0 && text.contains("OrderPlaced  order/7"), "{text}");
    // Events that could never be delivered are refused.
    for wrong in [
        &["--payload", "{"][..],
        &["--payload", "1", "--header", "ce_id=1"],
        &["--payload", "1", "--to-topic", "__offsets"],
    ] {
        let (code, text) = publish(wrong);
        assert_eq!(code, 2, "{text}");
    }
    let (code, text) = publish(&["--payload", "1", "--at", "1h"]);
    assert_eq!(code, 0, "{text}");
    let scheduled: i64 = sqlx::query_scalar("select count(*) from tidings.scheduled")
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    assert_eq!((scheduled, count(&database.pool).await), (1, 1));
    relay.stop().await;
}
