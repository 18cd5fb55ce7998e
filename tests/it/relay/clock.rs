//! Clocks that differ: a fault of a clock, never of an event.

use std::{fs::File, os::unix::fs::FileExt as _, path::PathBuf, process::Command};

use dev_services::{Kafka, KafkaOptions};
use sqlx::PgPool;

use super::operator::{delivered, published};
use crate::support::history::{Verdict, caught_up, create_accounts, write_concurrently};
use crate::support::records::{Reader, alter_topic, create_topic_with};
use crate::support::running::Place;
use crate::support::services::{migrated_database, own_kafka, skipped};

#[tokio::test(flavor = "multi_thread")]
async fn events_whose_timestamps_a_topic_refuses_are_published_and_none_is_parked() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    // The limit is narrower than the age of a waiting event, as if the broker's clock were ahead.
    create_topic_with(
        &place.brokers,
        &place.topic,
        2,
        &[("message.timestamp.before.max.ms", "60000")],
    )
    .await;
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, \
        occurred_at)
                  select 'order', n::text, 'T', to_json(n), now() - interval '2 hours' \
                  from generate_series(1, 200) n";
    sqlx::query(insert)
        .execute(pool)
        .await
        .expect("the insert succeeds");
    let relay = place.start();
    published(pool, &place, 200).await;
    relay.stop().await;
    assert_eq!(parked(pool).await, 0);
    assert_eq!(
        delivered(place.reader().read_to_the_end()),
        (1..=200).map(|id| (id, 1)).collect::<Vec<_>>()
    );
}

/// Returns the number of parked events.
async fn parked(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from tidings.parked")
        .fetch_one(pool)
        .await
        .expect("the query succeeds")
}

/// The difference between a broker's clock and the machine's. Its files are removed on drop.
struct Skew {
    folder: PathBuf,
    file: File,
}

impl Skew {
    /// Compiles the library that changes a process's view of the wall clock. Returns `None` if this
    /// is not possible on this machine.
    fn new() -> Option<Self> {
        let folder = std::env::temp_dir().join(format!("tidings-clock-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&folder).expect("a folder can be created");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/relay/clock.c");
        let compiled = cfg!(target_os = "linux")
            && Command::new("cc")
                .args(["-shared", "-fPIC", "-O2", "-o"])
                .arg(folder.join("clock.so"))
                .args([source, "-ldl"])
                .status()
                .is_ok_and(|status| status.success());
        let file = File::create(folder.join("skew")).expect("a file can be created");
        let skew = Self { folder, file };
        skew.set(0);
        if !compiled {
            skipped(
                "brokers with a wrong clock",
                "run on Linux with a C compiler (cc)",
            );
        }
        compiled.then_some(skew)
    }

    fn set(&self, hours: i64) {
        self.file
            .write_all_at(&(hours * 3_600).to_ne_bytes(), 0)
            .expect("the file can be written");
    }

    /// Starts a broker that reads the changed clock. Monotonic clocks are right.
    async fn kafka(&self) -> Kafka {
        let options = KafkaOptions::new()
            .env("LD_PRELOAD", self.folder.join("clock.so"))
            .env("CLOCK_SKEW_FILE", self.folder.join("skew"));
        let kafka = own_kafka(options).await;
        // If the clock steps back while the coordinator records the end of a transaction, it
        // refuses its own record as too new. That transaction then stays open until the broker
        // restarts.
        alter_topic(
            &kafka.brokers(),
            "__transaction_state",
            &[
                ("cleanup.policy", "compact"),
                ("message.timestamp.after.max.ms", "9223372036854775807"),
            ],
        )
        .await;
        kafka
    }
}

impl Drop for Skew {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Inserts an event for each of the topics in turn.
async fn insert_into(pool: &PgPool, topics: &[String], ids: std::ops::RangeInclusive<i64>) {
    let sql = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, topic)
               select 'order', n::text, 'T', to_json(n), ($3::text[])[n % $4 + 1] \
               from generate_series($1::bigint, $2::bigint) n";
    sqlx::query(sql)
        .bind(ids.start())
        .bind(ids.end())
        .bind(topics)
        .bind(i64::try_from(topics.len()).expect("a few"))
        .execute(pool)
        .await
        .expect("the insert succeeds");
}

/// Returns the deliveries of the records of these topics.
fn delivered_to(place: &Place, topics: &[String]) -> Vec<(i64, usize)> {
    let records: Vec<_> = topics
        .iter()
        .flat_map(|topic| {
            Reader::new(&place.brokers, topic)
                .read_to_the_end()
                .to_vec()
        })
        .collect();
    delivered(&records)
}

/// Topics with each source of timestamps, and one with a narrow limit in the direction of the
/// difference. A topic that refuses every time up to the database's own waits for a right clock.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_whose_clock_is_hours_wrong_gets_every_event_once_and_none_is_blamed() {
    for hours in [-2, 2] {
        let Some(skew) = Skew::new() else { return };
        skew.set(hours);
        let kafka = skew.kafka().await;
        let database = migrated_database().await;
        let place = Place {
            brokers: kafka.brokers(),
            ..Place::new(&database)
        };
        let narrow = match hours {
            -2 => "message.timestamp.after.max.ms",
            _ => "message.timestamp.before.max.ms",
        };
        let kinds: [&[(&str, &str)]; 3] = [
            &[("message.timestamp.type", "CreateTime")],
            &[("message.timestamp.type", "LogAppendTime")],
            &[(narrow, "600000")],
        ];
        let mut topics = Vec::new();
        for (n, settings) in kinds.into_iter().enumerate() {
            let topic = format!("{}-{n}", place.topic);
            create_topic_with(&place.brokers, &topic, 2, settings).await;
            topics.push(topic);
        }
        let relay = place.start();
        insert_into(&database.pool, &topics, 1..=150).await;
        if hours == 2 {
            published(&database.pool, &place, 100).await;
            relay.says("kafka", "refuses the timestamps").await;
            skew.set(0);
        }
        published(&database.pool, &place, 150).await;
        relay.stop().await;
        assert_eq!(parked(&database.pool).await, 0, "{hours} h");
        assert_eq!(
            delivered_to(&place, &topics),
            (1..=150).map(|id| (id, 1)).collect::<Vec<_>>(),
            "{hours} h"
        );
    }
}

/// The clock of a broker is set forward and back while events flow.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_whose_clock_steps_by_hours_costs_no_event_and_no_order() {
    let Some(skew) = Skew::new() else { return };
    let kafka = skew.kafka().await;
    let database = migrated_database().await;
    let place = Place {
        brokers: kafka.brokers(),
        ..Place::new(&database)
    };
    create_accounts(&database.pool, 6).await;
    let relay = place.start();
    let mut reader = place.reader();
    for hours in [2, -2, 0] {
        let writing = tokio::spawn({
            let pool = database.pool.clone();
            async move { write_concurrently(&pool, 2, 6, 150).await }
        });
        let seen = reader.until_more_than(0);
        reader.until_more_than(seen);
        skew.set(hours);
        writing.await.expect("the writers end without an error");
        write_concurrently(&database.pool, 2, 6, 40).await;
        caught_up(&database.pool, &mut reader).await;
    }
    assert_eq!(parked(&database.pool).await, 0);
    assert_eq!(
        relay.verdict(&database.pool, &mut reader).await,
        Verdict::default()
    );
}
