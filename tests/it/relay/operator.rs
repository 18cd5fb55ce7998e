//! Operator commands on relays: moving one, forgetting one, listing standbys.

use std::process::{Command, Output, Stdio};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    producer::{BaseProducer, BaseRecord, Producer as _},
};
use serde_json::Value;
use sqlx::PgPool;
use tidings::relay::SourceKind;

use crate::support::eventually::{eventually, until_number};
use crate::support::records::Record;
use crate::support::running::{Place, Running};
use crate::support::services::{TestDatabase, migrated_database};

impl Place {
    /// Runs a command of the binary on this relay. Returns its exit code and output.
    pub(crate) fn command(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.prepared(arguments).output().expect("the binary runs");
        let Output {
            status,
            stdout,
            stderr,
        } = output;
        let text = [stdout, stderr].concat();
        (
            status.code().expect("the process exits with a code"),
            String::from_utf8(text).expect("UTF-8"),
        )
    }

    pub(crate) fn prepared(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
        command.args(arguments).env_clear().stdin(Stdio::null());
        command
            .env("DATABASE_URL", &self.url)
            .env("KAFKA_BROKERS", &self.brokers)
            .env("TIDINGS_NAME", &self.name);
        // A finding in one line can be searched for a phrase.
        if arguments.first() == Some(&"check") {
            command.env("COLUMNS", "1000");
        }
        command
    }
}

pub(crate) async fn insert(pool: &PgPool, ids: std::ops::RangeInclusive<i64>) {
    let sql = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
        select 'order', n::text, 'T', to_json(n) from generate_series($1::bigint, $2::bigint) n";
    sqlx::query(sql)
        .bind(*ids.start())
        .bind(*ids.end())
        .execute(pool)
        .await
        .expect("the insert succeeds");
}

/// Returns the number of deliveries of each event, ordered by event.
pub(super) fn delivered(records: &[Record]) -> Vec<(i64, usize)> {
    let mut times = std::collections::BTreeMap::new();
    records.iter().for_each(|record| {
        *times
            .entry(record.text().parse().expect("a number"))
            .or_insert(0) += 1
    });
    times.into_iter().collect()
}

/// Waits until the database records that the relay has published `events` events.
pub(super) async fn published(pool: &PgPool, place: &Place, events: i64) {
    for _ in 0..6_000 {
        let sql = "select published from tidings.relay where name = $1";
        let count: Option<i64> = sqlx::query_scalar(sql)
            .bind(&place.name)
            .fetch_optional(pool)
            .await
            .expect("the query succeeds");
        if count.is_some_and(|count| count >= events) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{events} events are not published");
}

/// Runs a relay until it has published these events, then stops it.
pub(super) async fn ran(database: &TestDatabase, ids: std::ops::RangeInclusive<i64>) -> Place {
    let place = Place::new(database);
    let count = ids.end() - ids.start() + 1;
    insert(&database.pool, ids).await;
    let relay = place.start();
    published(&database.pool, &place, count).await;
    relay.says("stream", "streaming").await;
    relay.stop().await;
    place
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewind_publishes_everything_once_more_and_its_dry_run_says_how_much_that_is() {
    let database = migrated_database().await;
    let place = ran(&database, 1..=10).await;
    let (code, text) = place.command(&["relay", "rewind", "--all", "--dry-run"]);
    assert!(
        code == 0
            && text.contains("10 events will be published again, 0 unpublished")
            && text.contains("dry run"),
        "{text}"
    );
    let relay = place.start();
    relay.says("stream", "streaming").await;
    let (code, text) = place.command(&["relay", "rewind", "--all", "--yes"]);
    assert!(
        code == 3 && text.contains("is running:") && text.contains(&std::process::id().to_string()),
        "{text}"
    );
    relay.stop().await;
    assert_eq!(
        delivered(place.reader().read_to_the_end()),
        (1..=10).map(|id| (id, 1)).collect::<Vec<_>>()
    );
    let (code, text) = place.command(&["relay", "rewind", "--all", "--yes"]);
    assert!(code == 0 && text.contains("next start"), "{text}");
    insert(&database.pool, 11..=11).await;
    let relay = place.start();
    published(&database.pool, &place, 21).await;
    relay.stop().await;
    // The rewind applies to one start only.
    place.start().stop().await;
    let expected: Vec<_> = (1..=11)
        .map(|id| (id, if id == 11 { 1 } else { 2 }))
        .collect();
    assert_eq!(delivered(place.reader().read_to_the_end()), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewind_to_a_time_repeats_whole_transactions_that_are_younger_and_publishes_what_was_not()
{
    let database = migrated_database().await;
    let place = Place::new(&database);
    insert(&database.pool, 1..=3).await;
    let relay = place.start();
    // This transaction begins before the time of the rewind and continues after it.
    let mut long = database.pool.begin().await.expect("a transaction begins");
    sqlx::raw_sql(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
        values ('order', '4', 'T', '4')",
    )
    .execute(&mut *long)
    .await
    .expect("the insert succeeds");
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    let time: String = sqlx::query_scalar(
        "select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    )
    .fetch_one(&database.pool)
    .await
    .expect("the query succeeds");
    insert(&database.pool, 5..=6).await;
    sqlx::raw_sql(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
        values ('order', '7', 'T', '7')",
    )
    .execute(&mut *long)
    .await
    .expect("the insert succeeds");
    long.commit().await.expect("the commit succeeds");
    published(&database.pool, &place, 7).await;
    relay.stop().await;
    insert(&database.pool, 8..=8).await;
    let (code, text) = place.command(&["relay", "rewind", "--since", &time, "--yes"]);
    assert!(
        code == 0 && text.contains("4 events will be published again, 0 unpublished"),
        "{text}"
    );
    let relay = place.start();
    published(&database.pool, &place, 12).await;
    relay.stop().await;
    let expected: Vec<_> = (1..=8)
        .map(|id| (id, if (4..=7).contains(&id) { 2 } else { 1 }))
        .collect();
    assert_eq!(delivered(place.reader().read_to_the_end()), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_leaves_out_what_is_committed_and_not_what_comes_after() {
    let database = migrated_database().await;
    let place = ran(&database, 1..=2).await;
    let mut open = database.pool.begin().await.expect("a transaction begins");
    sqlx::raw_sql(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
        values ('order', '5', 'T', '5')",
    )
    .execute(&mut *open)
    .await
    .expect("the insert succeeds");
    insert(&database.pool, 3..=4).await;
    let (code, text) = place.command(&["relay", "skip", "--all", "--yes"]);
    assert!(
        code == 0
            && text
                .contains("0 events will be published again, 2 unpublished events will be skipped"),
        "{text}"
    );
    open.commit().await.expect("the commit succeeds");
    insert(&database.pool, 6..=6).await;
    let relay = place.start();
    published(&database.pool, &place, 4).await;
    relay.stop().await;
    assert_eq!(
        delivered(place.reader().read_to_the_end()),
        [(1, 1), (2, 1), (5, 1), (6, 1)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_is_given_up_in_the_middle_of_its_transaction_whichever_source_is_read() {
    for source in [SourceKind::Auto, SourceKind::Poll] {
        let database = migrated_database().await;
        let place = ran(&database, 1..=2).await;
        insert(&database.pool, 3..=5).await;
        let id: uuid::Uuid =
            sqlx::query_scalar("select id from tidings.outbox where aggregateid = '4'")
                .fetch_one(&database.pool)
                .await
                .expect("the query succeeds");
        let (code, text) = place.command(&["relay", "skip", "--event", &id.to_string(), "--yes"]);
        assert!(
            code == 0 && text.contains("0 events will be published again, 1 unpublished"),
            "{text}"
        );
        let mut options = place.options();
        options.source = source;
        let relay = Running::start(options.clone());
        published(&database.pool, &place, 4).await;
        relay.stop().await;
        insert(&database.pool, 6..=6).await;
        let relay = Running::start(options);
        published(&database.pool, &place, 5).await;
        // Long enough for the relay to compare the stream with the table.
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        relay.stop().await;
        assert_eq!(
            delivered(place.reader().read_to_the_end()),
            [(1, 1), (2, 1), (3, 1), (5, 1), (6, 1)],
            "{source:?}"
        );
    }
}

/// Returns the name of the relay's topic of positions.
pub(super) fn position_topic(place: &Place) -> String {
    let admin: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &place.brokers)
        .create()
        .expect("a client");
    let metadata = admin
        .client()
        .fetch_metadata(None, std::time::Duration::from_secs(10))
        .expect("the broker answers");
    let prefix = format!("tidings.position.{}.", place.name);
    let names = metadata
        .topics()
        .iter()
        .map(|topic| topic.name().to_owned());
    names
        .into_iter()
        .find(|name| name.starts_with(&prefix))
        .expect("the topic of positions exists")
}

pub(super) async fn delete_topic(place: &Place, topic: &str) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", &place.brokers)
        .create()
        .expect("a client");
    admin
        .delete_topics(&[topic], &AdminOptions::new())
        .await
        .expect("the broker answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_that_kafka_has_lost_are_gone_on_from_by_the_mirror_in_the_database() {
    let database = migrated_database().await;
    let place = ran(&database, 1..=3).await;
    delete_topic(&place, &position_topic(&place)).await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let text = place.start().refusal().await;
    assert!(
        text.contains("missing or empty") && text.contains("rewind --to-mirror"),
        "{text}"
    );
    let (code, text) = place.command(&["relay", "rewind", "--to-mirror", "--yes"]);
    assert_eq!(code, 0, "{text}");
    insert(&database.pool, 4..=4).await;
    let relay = place.start();
    published(&database.pool, &place, 4).await;
    relay.stop().await;
    assert_eq!(
        delivered(place.reader().read_to_the_end()),
        [(1, 1), (2, 1), (3, 1), (4, 1)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_no_position_is_passed_over() {
    let database = migrated_database().await;
    let place = ran(&database, 1..=3).await;
    let topic = position_topic(&place);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &place.brokers)
        .create()
        .expect("a client");
    producer
        .send(BaseRecord::to(&topic).key("x").payload("{}"))
        .map_err(|(error, _)| error)
        .expect("the producer accepts the record");
    producer
        .flush(std::time::Duration::from_secs(30))
        .expect("the record is sent");
    for id in 4..=5 {
        insert(&database.pool, id..=id).await;
        let relay = place.start();
        published(&database.pool, &place, id).await;
        relay.stop().await;
    }
    assert_eq!(
        delivered(place.reader().read_to_the_end()),
        (1..=5).map(|id| (id, 1)).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_before_its_first_record_is_not_taken_for_a_kafka_that_lost_data() {
    let database = migrated_database().await;
    let place = ran(&database, 1..=2).await;
    let mut killed = place.spawn();
    let epoch = "select position_epoch from tidings.relay";
    until_number(&database.pool, "it leads", epoch, |epoch| epoch == 2).await;
    killed.kill();
    let relay = place.start();
    relay.says("stream", "streaming").await;
    relay.stop().await;
}

/// The command accepts the relay as an option, like every other command, or as an argument.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_forgotten_leaves_nothing_behind() {
    let database = migrated_database().await;
    let place = ran(&database, 1..=2).await;
    let topic = position_topic(&place);
    let (code, text) = place.command(&["relay", "forget", "nobody", "--yes"]);
    assert!(
        code == 3 && text.contains("no relay `nobody`") && text.contains(&place.name),
        "{text}"
    );
    let relay = place.start();
    relay.says("stream", "streaming").await;
    let (code, text) = place.command(&["relay", "forget", &place.name, "--yes"]);
    assert!(code == 3 && text.contains("Stop every relay"), "{text}");
    relay.stop().await;
    let (code, text) = place.command(&["relay", "forget", &place.name, "--name", "other", "--yes"]);
    assert!(code != 0 && text.contains("are two relays"), "{text}");
    let unnamed = place
        .prepared(&["relay", "forget", "--yes"])
        .env_remove("TIDINGS_NAME")
        .output()
        .expect("the binary runs");
    assert!(
        !unnamed.status.success()
            && String::from_utf8_lossy(&unnamed.stderr).contains("no relay is named"),
        "{unnamed:?}"
    );
    let (code, text) = place.command(&[
        "relay",
        "forget",
        "--name",
        &place.name,
        "--delete-topic",
        "--yes",
    ]);
    assert!(
        code == 0
            && text.contains(&place.slot())
            && text.contains(&format!("deleted the topic of its positions, {topic}")),
        "{text}"
    );
    let left = "select (select count(*) from tidings.relay) + (select count(*) \
        from tidings.relay_topic)
                     + (select count(*) from pg_replication_slots \
                     where database = current_database()) + (select count(*) from pg_publication)";
    let left: i64 = sqlx::query_scalar(left)
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leads_and_who_stands_by_is_shown_with_host_and_process() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let leader = place.start();
    leader.says("stream", "streaming").await;
    let standby = place.spawn();
    let pid = standby.pid();
    let relays = eventually("the standby is listed", async || {
        let (code, text) = place.command(&["relay", "list", "--json"]);
        assert_eq!(code, 0, "{text}");
        let status: Value = serde_json::from_str(&text).expect("JSON");
        let is_listed = status["relays"][0]["standbys"]
            .as_array()
            .is_some_and(|standbys| !standbys.is_empty());
        is_listed.then(|| status["relays"].clone()).ok_or(text)
    })
    .await;
    let process = relays[0]["standbys"][0]
        .as_str()
        .expect("a process")
        .to_owned();
    assert!(
        process.ends_with(&format!(":{pid}")) && process.len() > pid.to_string().len() + 1,
        "{process}"
    );
    assert!(
        relays[0]["leader"]
            .as_str()
            .expect("a leader")
            .ends_with(&format!(":{}", std::process::id()))
    );
    for command in [["relay", "list"].as_slice(), &["status"]] {
        let (_, text) = place.command(command);
        assert!(
            text.contains("standbys") && text.contains(&process),
            "{text}"
        );
    }
    drop(standby);
    leader.stop().await;
}
