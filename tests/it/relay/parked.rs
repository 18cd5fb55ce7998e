//! Parking: one bad event stops its own aggregate and nothing else.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, PgPool};
use tidings::relay::{DeliveryGuarantee, OnUndeliverable, RelayOptions, SourceKind};

use crate::support::eventually::{eventually, until, until_number};
use crate::support::history::{
    Verdict, committed, create_accounts, expected, judge, write_concurrently,
};
use crate::support::records::{Reader, Record, create_topic_with};
use crate::support::running::{Killed, Place, Running};
use crate::support::services::{TestDatabase, encoded_database, migrated_database};

pub(super) async fn sql(pool: &PgPool, text: &str) {
    sqlx::raw_sql(AssertSqlSafe(text.to_owned()))
        .execute(pool)
        .await
        .expect(text);
}

/// Publishes event `n` of an order, padded to about `bytes` bytes.
pub(super) async fn publish(pool: &PgPool, id: &str, n: i64, bytes: i32) {
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
        values ('order', $1, 'T', json_build_object('n', $2, 'pad', repeat('x', $3)))";
    sqlx::query(insert)
        .bind(id)
        .bind(n)
        .bind(bytes)
        .execute(pool)
        .await
        .expect("the insert succeeds");
}

/// Returns aggregate and number of each parked event in order, and `true` for those that are parked
/// for a reason of their own.
pub(super) async fn parked(pool: &PgPool) -> Vec<(String, i64, bool)> {
    let select = "select p.aggregateid, (o.payload ->> 'n')::bigint, p.reason is not null \
        from tidings.parked p join tidings.outbox o using (seq) order by p.seq";
    sqlx::query_as(select)
        .fetch_all(pool)
        .await
        .expect("the query succeeds")
}

pub(super) async fn until_parked(pool: &PgPool, wanted: &[(&str, i64, bool)]) {
    eventually(&format!("{wanted:?} are parked"), async || {
        let now = parked(pool).await;
        let is_wanted = now
            .iter()
            .map(|(id, n, wrong)| (id.as_str(), *n, *wrong))
            .eq(wanted.iter().copied());
        is_wanted.then_some(()).ok_or(now)
    })
    .await;
}

/// Returns the numbers of an order's events in topic order.
pub(super) fn numbers(records: &[Record], id: &str) -> Vec<i64> {
    let of = records.iter().filter(|record| record.key == id.as_bytes());
    of.map(|record| {
        serde_json::from_str::<serde_json::Value>(record.text()).expect("JSON")["n"]
            .as_i64()
            .expect("a number")
    })
    .collect()
}

fn small(place: &Place) -> RelayOptions {
    let mut options = place.options();
    options.message_bytes_max = 10_000;
    options
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_too_large_waits_with_its_aggregate_others_go_on_and_a_retry_keeps_the_order() {
    for source in [SourceKind::Auto, SourceKind::Poll] {
        let database = migrated_database().await;
        let (pool, place) = (&database.pool, Place::new(&database));
        let mut options = small(&place);
        options.source = source;
        let relay = Running::start(options.clone());
        publish(pool, "a", 1, 1).await;
        publish(pool, "a", 2, 20_000).await;
        publish(pool, "a", 3, 1).await;
        publish(pool, "b", 1, 1).await;
        until_parked(pool, &[("a", 2, true), ("a", 3, false)]).await;
        place.reader().until_distinct(2);
        // The parked events survive a restart, and a later event of the aggregate waits too.
        relay.stop().await;
        let relay = Running::start(options.clone());
        publish(pool, "a", 4, 1).await;
        publish(pool, "b", 2, 1).await;
        until_parked(pool, &[("a", 2, true), ("a", 3, false), ("a", 4, false)]).await;
        place.reader().until_distinct(3);
        // The cause still exists, so the event fails and waits again.
        sql(
            pool,
            "update tidings.parked set action = 'retry' where reason is not null",
        )
        .await;
        until_decided(pool).await;
        until_parked(pool, &[("a", 2, true), ("a", 3, false), ("a", 4, false)]).await;
        relay.stop().await;
        // Raise the limit. More events arrive before a relay runs again.
        options.message_bytes_max = 100_000;
        sql(pool, "update tidings.parked set action = 'retry'").await;
        publish(pool, "a", 5, 1).await;
        let relay = Running::start(options);
        until_parked(pool, &[]).await;
        publish(pool, "a", 6, 1).await;
        let mut reader = place.reader();
        reader.until_distinct(8);
        assert!(
            relay
                .observer
                .metrics_text()
                .contains("tidings_relay_parked_events 0")
        );
        relay.stop().await;
        let records = reader.read_to_the_end();
        assert_eq!(
            (numbers(records, "a"), numbers(records, "b")),
            (vec![1, 2, 3, 4, 5, 6], vec![1, 2]),
            "{source:?}"
        );
    }
}

/// Waits until the leader has executed the operator's decisions.
pub(super) async fn until_decided(pool: &PgPool) {
    let left = "select count(*) from tidings.parked where action is not null";
    until_number(pool, "a relay executes the decision", left, |left| {
        left == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_lacks_a_value_waits_with_its_aggregate_until_it_is_repaired_and_one_without_an_aggregate_can_be_left_out()
 {
    for source in [SourceKind::Auto, SourceKind::Poll] {
        let database = migrated_database().await;
        let (pool, place) = (&database.pool, Place::new(&database));
        sql(
            pool,
            "alter table tidings.outbox alter type drop not null, alter aggregateid drop not null",
        )
        .await;
        let options = RelayOptions {
            source,
            ..place.options()
        };
        let relay = Running::start(options.clone());
        publish(pool, "a", 1, 1).await;
        place.reader().until_distinct(1);
        if source == SourceKind::Auto {
            relay.says("stream", "streaming").await;
        }
        sql(
            pool,
            "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
            values ('order', 'a', null, '{\"n\": 2}')",
        )
        .await;
        publish(pool, "a", 3, 1).await;
        publish(pool, "b", 1, 1).await;
        until_parked(pool, &[("a", 2, true), ("a", 3, false)]).await;
        let reason: String =
            sqlx::query_scalar("select reason from tidings.parked where reason is not null")
                .fetch_one(pool)
                .await
                .expect("the query succeeds");
        assert_eq!(reason, "column `type` is null where a value is needed");
        place.reader().until_distinct(2);
        sql(
            pool,
            "update tidings.outbox set type = 'T' where type is null; \
            update tidings.parked set action = 'retry'",
        )
        .await;
        let mut reader = place.reader();
        reader.until_distinct(4);
        // The aggregate of this row is unknown, so the relay cannot determine which events have to
        // wait.
        sql(
            pool,
            "insert into tidings.outbox (aggregatetype, type, payload) \
            values ('order', 'T', '{\"n\": 4}')",
        )
        .await;
        publish(pool, "b", 2, 1).await;
        let refusal = relay.refusal().await;
        assert!(
            refusal.contains("column `aggregateid`")
                && refusal.contains("tidings relay skip --event"),
            "{refusal}"
        );
        let id: uuid::Uuid =
            sqlx::query_scalar("select id from tidings.outbox where aggregateid is null")
                .fetch_one(pool)
                .await
                .expect("the query succeeds");
        let (code, text) = place.command(&["relay", "skip", "--event", &id.to_string(), "--yes"]);
        assert_eq!(code, 0, "{text}");
        let relay = Running::start(options);
        reader.until_distinct(5);
        relay.stop().await;
        let records = reader.read_to_the_end();
        assert_eq!(
            (numbers(records, "a"), numbers(records, "b")),
            (vec![1, 2, 3], vec![1, 2]),
            "{source:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn giving_up_the_event_in_the_way_releases_what_waits_behind_it() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    let relay = Running::start(small(&place));
    for (n, bytes) in [(1, 20_000), (2, 1), (3, 20_000), (4, 1)] {
        publish(pool, "a", n, bytes).await;
    }
    until_parked(
        pool,
        &[
            ("a", 1, true),
            ("a", 2, false),
            ("a", 3, false),
            ("a", 4, false),
        ],
    )
    .await;
    sql(
        pool,
        "update tidings.parked set action = 'discard' where reason is not null",
    )
    .await;
    // Only now does the third event prove undeliverable, too.
    until_parked(pool, &[("a", 3, true), ("a", 4, false)]).await;
    sql(pool, "update tidings.parked set action = 'discard'").await;
    until_parked(pool, &[]).await;
    publish(pool, "a", 5, 1).await;
    let mut reader = place.reader();
    reader.until_distinct(2);
    relay.stop().await;
    assert_eq!(numbers(reader.read_to_the_end(), "a"), [2, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_row_was_deleted_is_not_released_but_said_to_be_gone() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    let relay = Running::start(small(&place));
    publish(pool, "a", 1, 20_000).await;
    publish(pool, "a", 2, 1).await;
    publish(pool, "b", 1, 20_000).await;
    until_parked(pool, &[("a", 1, true), ("a", 2, false), ("b", 1, true)]).await;
    // Longer ago than any commit waits for its standby.
    sql(
        pool,
        "set local tidings.delete_unpublished = on; delete from tidings.outbox where seq in (1, 3);
         update tidings.parked set parked_at = now() - interval '1 hour', action = 'retry' \
         where reason is not null",
    )
    .await;
    until_decided(pool).await;
    let reasons: Vec<String> =
        sqlx::query_scalar("select reason from tidings.parked where reason is not null")
            .fetch_all(pool)
            .await
            .expect("the query succeeds");
    assert!(
        reasons.len() == 2
            && reasons
                .iter()
                .all(|reason| reason.contains("no longer in the outbox")),
        "{reasons:?}"
    );
    sql(
        pool,
        "update tidings.parked set action = 'discard' where reason is not null",
    )
    .await;
    until_decided(pool).await;
    until_parked(pool, &[]).await;
    let mut reader = place.reader();
    reader.until_distinct(1);
    relay.stop().await;
    assert_eq!(numbers(reader.read_to_the_end(), "a"), [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_are_no_object_and_types_that_are_no_topic_are_parked() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    sql(
        pool,
        "alter table tidings.outbox drop constraint outbox_headers_object",
    )
    .await;
    let mut options = place.options();
    options.topic = format!("{}-{{aggregatetype}}", place.topic);
    let relay = Running::start(options);
    sql(
        pool,
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, headers) values
            ('order', 'a', 'T', '{\"n\":1}', '[1]'), ('or der', 'b', 'T', '{\"n\":1}', '{}'), \
            ('order', 'c', 'T', '{\"n\":1}', '{}')",
    )
    .await;
    until_parked(pool, &[("a", 1, true), ("b", 1, true)]).await;
    let reasons: Vec<(String, String)> =
        sqlx::query_as("select reason, topic from tidings.parked order by seq")
            .fetch_all(pool)
            .await
            .expect("the query succeeds");
    assert!(
        reasons[0].0.contains("not a JSON object")
            && reasons[1].0.contains("not a valid topic name"),
        "{reasons:?}"
    );
    assert!(reasons[1].1.ends_with("-or der"), "{reasons:?}");
    Reader::new(&place.brokers, &format!("{}-order", place.topic)).until_distinct(1);
    relay.stop().await;
}

/// Returns a place whose topic accepts batches up to this size, and the options of a relay that
/// sends larger ones.
pub(super) async fn strict(
    database: &TestDatabase,
    bytes: &str,
    delivery: DeliveryGuarantee,
) -> (Place, RelayOptions) {
    let place = Place::new(database);
    create_topic_with(
        &place.brokers,
        &place.topic,
        1,
        &[("max.message.bytes", bytes)],
    )
    .await;
    let mut options = place.options();
    options.delivery = delivery;
    options
        .kafka
        .properties
        .insert("compression.type".into(), "none".into());
    // Events that are sent together form one batch.
    options
        .kafka
        .properties
        .insert("linger.ms".into(), "20".into());
    (place, options)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_batch_that_the_broker_refuses_only_the_culprit_is_parked() {
    for delivery in [
        DeliveryGuarantee::ExactlyOnce,
        DeliveryGuarantee::AtLeastOnce,
    ] {
        let database = migrated_database().await;
        let (pool, (place, options)) =
            (&database.pool, strict(&database, "100000", delivery).await);
        sql(
            pool,
            "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
            select 'order', case n when 50 then 'large' else 'o' || n end, 'T', \
            json_build_object('n', n, 'pad', repeat('x', case n when 50 then 200000 else 1 end))
            from generate_series(1, 100) n",
        )
        .await;
        publish(pool, "large", 101, 1).await;
        let relay = Running::start(options);
        until_parked(pool, &[("large", 50, true), ("large", 101, false)]).await;
        let mut reader = place.reader();
        reader.until_distinct(99);
        relay.stop().await;
        let records = reader.read_to_the_end();
        assert!(records.iter().all(|record| record.key != b"large"));
        if delivery == DeliveryGuarantee::ExactlyOnce {
            assert_eq!(records.len(), 99);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_are_too_large_for_the_topic_become_smaller_and_nothing_is_parked() {
    let database = migrated_database().await;
    let (pool, (place, options)) = (
        &database.pool,
        strict(&database, "20000", DeliveryGuarantee::ExactlyOnce).await,
    );
    let relay = Running::start(options);
    let mut reader = place.reader();
    for wave in 1..=8 {
        // Together these events exceed the limit of the topic.
        let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
            select 'order', 'o' || n % 3, 'T', json_build_object('n', n, 'pad', repeat('x', \
            5000)) from generate_series($1 - 19, $1) n";
        sqlx::query(insert)
            .bind(wave * 20)
            .execute(pool)
            .await
            .expect("the insert succeeds");
        reader.until_distinct(usize::try_from(wave).expect("the number fits") * 20);
    }
    let metrics = relay.observer.metrics_text();
    relay.stop().await;
    assert!(parked(pool).await.is_empty());
    let records = reader.read_to_the_end();
    assert_eq!(
        (records.len(), numbers(records, "o1")),
        (160, (1..=160).step_by(3).collect())
    );
    // The batch size is halved until it fits and is then kept. Otherwise every wave would be
    // refused.
    let refused = metrics
        .lines()
        .find_map(|line| line.strip_prefix("tidings_relay_reconnects_total{side=\"kafka\"} "));
    assert!(
        (1..=4).contains(
            &refused
                .expect("a batch was refused")
                .parse::<u32>()
                .expect("a number")
        ),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_refuses_again_when_it_is_retried_waits_again_and_goes_once_the_topic_takes_it()
 {
    let database = migrated_database().await;
    let (pool, (place, options)) = (
        &database.pool,
        strict(&database, "20000", DeliveryGuarantee::ExactlyOnce).await,
    );
    let relay = Running::start(options);
    publish(pool, "a", 1, 1).await;
    publish(pool, "a", 2, 30_000).await;
    publish(pool, "a", 3, 1).await;
    publish(pool, "b", 1, 1).await;
    until_parked(pool, &[("a", 2, true), ("a", 3, false)]).await;
    sql(
        pool,
        "update tidings.parked set action = 'retry' where reason is not null",
    )
    .await;
    until_decided(pool).await;
    until_parked(pool, &[("a", 2, true), ("a", 3, false)]).await;
    crate::support::records::alter_topic(
        &place.brokers,
        &place.topic,
        &[("max.message.bytes", "100000")],
    )
    .await;
    // The broker applies the new setting with a delay, so a retry may come too early.
    retry_until_released(pool).await;
    publish(pool, "a", 4, 1).await;
    let mut reader = place.reader();
    reader.until_distinct(5);
    relay.stop().await;
    let records = reader.read_to_the_end();
    assert_eq!(
        (numbers(records, "a"), numbers(records, "b")),
        (vec![1, 2, 3, 4], vec![1])
    );
}

/// Retries until nothing is parked.
pub(super) async fn retry_until_released(pool: &PgPool) {
    until("nothing is parked", async || {
        let retry = "update tidings.parked set action = 'retry' where reason is not null";
        sql(pool, retry).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        parked(pool).await.is_empty().then_some(())
    })
    .await;
}

/// Waits until `events` events are parked in `rows` rows.
async fn until_counted(pool: &PgPool, events: i64, rows: i64) {
    eventually(&format!("{events} events in {rows} rows"), async || {
        let count = "select coalesce(sum(events), 0)::bigint, count(*) from tidings.parked";
        let now: (i64, i64) = sqlx::query_as(count)
            .fetch_one(pool)
            .await
            .expect("the query succeeds");
        (now == (events, rows)).then_some(()).ok_or(now)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_aggregate_of_which_many_wait_the_later_ones_are_a_range_that_is_kept_and_released_in_order()
 {
    for source in [SourceKind::Auto, SourceKind::Poll] {
        let database = migrated_database().await;
        let (pool, place) = (&database.pool, Place::new(&database));
        let mut options = RelayOptions {
            source,
            ..small(&place)
        };
        options.undeliverable.parked_per_aggregate_max = 3;
        options.retention.keep = Duration::from_secs(1);
        publish(pool, "a", 1, 20_000).await;
        for n in 2..=10 {
            publish(pool, "a", n, 1).await;
            publish(pool, "b", n, 1).await;
        }
        let relay = Running::start(options.clone());
        until_counted(pool, 10, 4).await;
        place.reader().until_distinct(9);
        // The range survives a restart, and a later event becomes part of it.
        relay.stop().await;
        let relay = Running::start(options.clone());
        publish(pool, "a", 11, 1).await;
        until_counted(pool, 11, 4).await;
        let (code, text) = place.command(&["parked", "list", "--json"]);
        assert!(code == 0 && text.contains("\"events\": 11"), "{text}");
        // Wait until retention has run, which the rows of the other aggregate show.
        let others = "select count(*) from tidings.outbox where aggregateid = 'b'";
        until_number(pool, "rows are deleted", others, |others| others <= 1).await;
        let kept: i64 =
            sqlx::query_scalar("select count(*) from tidings.outbox where aggregateid = 'a'")
                .fetch_one(pool)
                .await
                .expect("the query succeeds");
        assert_eq!(kept, 11);
        relay.stop().await;
        options.message_bytes_max = 100_000;
        sql(
            pool,
            "update tidings.parked set action = 'retry' where reason is not null",
        )
        .await;
        let relay = Running::start(options);
        until_counted(pool, 0, 0).await;
        publish(pool, "a", 12, 1).await;
        let mut reader = place.reader();
        reader.until_distinct(21);
        relay.stop().await;
        assert_eq!(
            numbers(reader.read_to_the_end(), "a"),
            (1..=12).collect::<Vec<i64>>(),
            "{source:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_and_one_events_of_an_aggregate_stop_that_aggregate_alone() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    sql(
        pool,
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
         select 'order', 'a', 'T', json_build_object('n', n, 'pad', repeat('x', \
         case n when 1 then 20000 else 1 end)) from generate_series(1, 10001) n",
    )
    .await;
    publish(pool, "b", 1, 1).await;
    let relay = Running::start(small(&place));
    place.reader().until_distinct(1);
    until_counted(pool, 10_001, 10_001).await;
    // One statement discards all of them.
    sql(pool, "update tidings.parked set action = 'discard'").await;
    until_counted(pool, 0, 0).await;
    publish(pool, "a", 10_002, 1).await;
    let mut reader = place.reader();
    reader.until_distinct(2);
    relay.stop().await;
    assert_eq!(numbers(reader.read_to_the_end(), "a"), [10_002]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_has_parked_as_much_as_it_may_waits_and_acts_on_a_decision() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    let mut options = small(&place);
    options.undeliverable.parked_max = 2;
    for id in ["c", "d", "e"] {
        publish(pool, id, 1, 20_000).await;
    }
    publish(pool, "f", 1, 1).await;
    let relay = Running::start(options.clone());
    relay.says("stream", "2 events are parked").await;
    relay.stop().await;
    // The relay also reports them at its next start.
    let relay = Running::start(options);
    relay.says("stream", "2 events are parked").await;
    sql(
        pool,
        "update tidings.parked set action = 'discard' where aggregateid = 'c'",
    )
    .await;
    let mut reader = place.reader();
    reader.until_distinct(1);
    until_parked(pool, &[("d", 1, true), ("e", 1, true)]).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_says_why_and_its_aggregate_goes_on() {
    let database = migrated_database().await;
    let (pool, (place, mut options)) = (
        &database.pool,
        strict(&database, "20000", DeliveryGuarantee::ExactlyOnce).await,
    );
    sql(
        pool,
        "alter table tidings.outbox drop constraint outbox_headers_object",
    )
    .await;
    options.undeliverable.policy = OnUndeliverable::DeadLetter;
    options.message_bytes_max = 50_000;
    let relay = Running::start(options);
    publish(pool, "a", 1, 1).await;
    publish(pool, "a", 2, 30_000).await;
    publish(pool, "a", 3, 60_000).await;
    sql(
        pool,
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, headers) \
         values ('order', 'a', 'T', '{\"n\":4}', '[1]')",
    )
    .await;
    publish(pool, "a", 5, 1).await;
    let mut dead = Reader::new(&place.brokers, &format!("{}.dead", place.topic));
    dead.until_distinct(3);
    let mut reader = place.reader();
    reader.until_distinct(2);
    relay.stop().await;
    assert_eq!(numbers(reader.read_to_the_end(), "a"), [1, 5]);
    assert!(parked(pool).await.is_empty());
    let dead = dead.read_to_the_end();
    let seqs: Vec<(i64, uuid::Uuid)> =
        sqlx::query_as("select seq, id from tidings.outbox order by seq")
            .fetch_all(pool)
            .await
            .expect("the query succeeds");
    for (record, (seq, id)) in dead.iter().zip(&seqs[1..4]) {
        assert_eq!(record.headers["tidings_original_topic"], place.topic);
        assert_eq!(
            (
                &record.headers["tidings_event_id"],
                &record.headers["tidings_seq"]
            ),
            (&id.to_string(), &seq.to_string())
        );
        assert_eq!(record.headers["ce_id"], id.to_string());
    }
    assert!(
        dead[0].headers["tidings_reason"].contains("max.message.bytes")
            && dead[0].text().contains("\"n\""),
        "as it was: it fits there"
    );
    assert!(dead[1].headers["tidings_reason"].contains("max_message_bytes"));
    assert_eq!(
        dead[1].text(),
        format!(
            r#"{{"outbox":{{"id":"{}","schema":"tidings","seq":{}}}}}"#,
            seqs[2].1, seqs[2].0
        )
    );
    assert!(dead[2].headers["tidings_reason"].contains("not a JSON object"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_dead_letters_that_is_missing_is_waited_for_by_name_and_nothing_is_lost() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    create_topic_with(&place.brokers, &place.topic, 1, &[]).await;
    let mut options = small(&place);
    options.topics.create = false;
    options.undeliverable.policy = OnUndeliverable::DeadLetter;
    let relay = Running::start(options);
    for (n, bytes) in [(1, 1), (2, 20_000), (3, 1)] {
        publish(pool, "a", n, bytes).await;
    }
    let dead = format!("{}.dead", place.topic);
    relay
        .says("kafka", &format!("topic `{dead}` does not exist"))
        .await;
    create_topic_with(&place.brokers, &dead, 1, &[]).await;
    Reader::new(&place.brokers, &dead).until_distinct(1);
    let mut reader = place.reader();
    reader.until_distinct(2);
    relay.stop().await;
    assert_eq!(numbers(reader.read_to_the_end(), "a"), [1, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_stop_the_event_is_named_even_if_the_broker_refused_a_whole_batch() {
    let database = migrated_database().await;
    let (pool, (place, mut options)) = (
        &database.pool,
        strict(&database, "20000", DeliveryGuarantee::ExactlyOnce).await,
    );
    options.undeliverable.policy = OnUndeliverable::Stop;
    for n in 1..=20 {
        publish(pool, &format!("o{n}"), n, if n == 7 { 30_000 } else { 1 }).await;
    }
    let text = Running::start(options.clone()).refusal().await;
    let id: uuid::Uuid =
        sqlx::query_scalar("select id from tidings.outbox where aggregateid = 'o7'")
            .fetch_one(pool)
            .await
            .expect("the query succeeds");
    assert!(
        text.contains(&id.to_string())
            && text.contains("order/o7")
            && text.contains("--on-undeliverable park"),
        "{text}"
    );
    options.undeliverable.policy = OnUndeliverable::Park;
    let relay = Running::start(options);
    let mut reader = place.reader();
    reader.until_distinct(19);
    relay.stop().await;
    assert_eq!(reader.read_to_the_end().len(), 19);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_the_commit_of_a_release_and_its_note_in_the_table_it_repeats_nothing() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    // No parked row can be deleted, as if the relay were killed each time right before the
    // deletion.
    sql(
        pool,
        "alter table tidings.outbox drop constraint outbox_headers_object;
         create function refuse() returns trigger language plpgsql as $$ begin raise exception \
         'not now'; end $$;
         create trigger refuse before delete on tidings.parked for each statement execute \
         function refuse();
         insert into tidings.outbox (aggregatetype, aggregateid, type, payload, headers) values
             ('order', 'a', 'T', '{\"n\":1}', '[1]'), ('order', 'a', 'T', '{\"n\":2}', '{}')",
    )
    .await;
    let mut relay = place.spawn();
    until_parked(pool, &[("a", 1, true), ("a", 2, false)]).await;
    sql(
        pool,
        "update tidings.outbox set headers = '{}'; \
        update tidings.parked set action = 'retry' where reason is not null",
    )
    .await;
    place.reader().until_distinct(2);
    relay.kill();
    assert_eq!(parked(pool).await.len(), 2);
    sql(pool, "drop trigger refuse on tidings.parked").await;
    let relay = place.spawn();
    until_parked(pool, &[]).await;
    publish(pool, "a", 3, 1).await;
    let mut reader = place.reader();
    reader.until_distinct(3);
    drop(relay);
    assert_eq!(numbers(reader.read_to_the_end(), "a"), [1, 2, 3]);
}

/// Makes every seventh step of three accounts undeliverable.
async fn spoil(pool: &PgPool) {
    create_accounts(pool, 8).await;
    sql(
        pool,
        "alter table tidings.outbox drop constraint outbox_headers_object;
         create function spoil() returns trigger language plpgsql as $$ begin
             if new.aggregateid in ('a0', 'a1', 'a2') and (new.payload ->> 'version')::bigint % 7 \
             = 0 then new.headers = '[1]'; end if;
             return new;
         end $$;
         create trigger spoil before insert on tidings.outbox for each row execute function \
         spoil()",
    )
    .await;
}

/// Repairs the parked events and requests a retry.
async fn repair(pool: &PgPool) {
    let repair = "update tidings.outbox set headers = '{}' where jsonb_typeof(headers) = 'array' \
         and seq in (select seq from tidings.parked);
                  update tidings.parked set action = 'retry' where reason is not null";
    sql(pool, repair).await;
}

/// Repairs until nothing is parked and everything is published, ends the relay, and checks the
/// topic.
async fn repaired(database: &TestDatabase, place: &Place, last: Killed) -> Verdict {
    let pool = &database.pool;
    let committed = committed(pool).await;
    let mut reader = place.reader();
    eventually("everything is released and published", async || {
        repair(pool).await;
        let waiting: i64 = sqlx::query_scalar("select count(*) from tidings.parked")
            .fetch_one(pool)
            .await
            .expect("the query succeeds");
        let unread: i64 = sqlx::query_scalar(
            "select count(*) from tidings.outbox o, tidings.relay r \
             where not tidings.is_published(coalesce(r.position, '{}'), o.xid, o.seq)",
        )
        .fetch_one(pool)
        .await
        .expect("the query succeeds");
        let is_done = waiting == 0 && unread == 0;
        is_done.then_some(()).ok_or((waiting, unread))
    })
    .await;
    reader.until_distinct(expected(&committed));
    drop(last);
    judge(&committed, reader.read_to_the_end())
}

/// Kills the relay again and again while undeliverable events are parked, repaired, retried and
/// released.
async fn killed(kills: usize, variables: &[(&str, &str)]) -> Verdict {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    spoil(pool).await;
    let writing = tokio::spawn({
        let pool = pool.clone();
        async move { write_concurrently(&pool, 4, 8, 300).await }
    });
    let mut random = 7_u64;
    for _ in 0..kills {
        let mut relay = place.spawn_with(variables);
        // The relay sees a decision at its next tick. Each round kills it at another moment around
        // that tick.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let life = Duration::from_millis(700 + (random >> 33) % 1_800);
        let until = Instant::now() + life;
        while Instant::now() < until {
            repair(pool).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        relay.kill();
    }
    let last = place.spawn_with(variables);
    writing.await.expect("the writers end without an error");
    repaired(&database, &place, last).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_at_each_step_of_parking_and_releasing_costs_nothing() {
    for step in [
        "parked:1",
        "parked:3",
        "release-sent:2",
        "release-committed:1",
        "released:2",
    ] {
        let database = migrated_database().await;
        let (pool, place) = (&database.pool, Place::new(&database));
        spoil(pool).await;
        let mut dying = place.spawn_with(&[("TIDINGS_TEST_DIE_AT", step)]);
        let mut times = 0;
        while !dying.has_died() {
            write_concurrently(pool, 2, 8, 10).await;
            repair(pool).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            times += 1;
            assert!(times < 600, "the relay never reaches {step}");
        }
        let last = place.spawn();
        assert_eq!(
            repaired(&database, &place, last).await,
            Verdict::default(),
            "after a death at {step}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_parks_and_releases_it_loses_repeats_and_misorders_nothing() {
    assert_eq!(killed(12, &[]).await, Verdict::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_parks_and_releases_what_it_polls_and_delivers_at_least_once_it_loses_and_misorders_nothing()
 {
    let verdict = killed(
        6,
        &[
            ("TIDINGS_SOURCE", "poll"),
            ("TIDINGS_DELIVERY", "at-least-once"),
        ],
    )
    .await;
    assert_eq!(
        verdict,
        Verdict {
            repeated: verdict.repeated,
            ..Verdict::default()
        }
    );
}

/// The reason quotes the topic, which is not ASCII.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_parked_in_a_database_of_any_encoding() {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let database = encoded_database(encoding).await;
        let place = Place::new(&database);
        // A row that is older than the constraint.
        let drop = "alter table tidings.outbox drop constraint outbox_topic_name";
        sql(&database.pool, drop).await;
        let topic = format!("{}-\u{e9}", place.topic);
        let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, topic)
            values ('order', $1, 'T', '1', $2)";
        for (id, topic) in [("bad", Some(&topic)), ("bad", None), ("good", None)] {
            sqlx::query(insert)
                .bind(id)
                .bind(topic)
                .execute(&database.pool)
                .await
                .expect("the insert succeeds");
        }
        let relay = place.start();
        let keys: Vec<String> = place
            .reader()
            .until_distinct(1)
            .iter()
            .map(|record| String::from_utf8_lossy(&record.key).into_owned())
            .collect();
        assert_eq!(keys, ["good"], "{encoding}");
        let reason = "select reason from tidings.parked where reason is not null";
        let reason: String = until("an event is parked for a reason", async || {
            sqlx::query_scalar(reason)
                .fetch_optional(&database.pool)
                .await
                .expect("the query succeeds")
        })
        .await;
        let quoted = if encoding == "LATIN1" {
            r"-\303\251"
        } else {
            "-\u{e9}"
        };
        assert!(reason.contains(quoted), "{encoding}: {reason}");
        relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_leads_although_the_database_cannot_encode_the_name_of_its_host() {
    let database = encoded_database("LATIN1").await;
    let place = Place::new(&database);
    let _relay = place.spawn_with(&[("HOSTNAME", "host-\u{4e2d}")]);
    let leader = "select leader from tidings.relay where leader is not null";
    let leader: String = until("the relay leads", async || {
        sqlx::query_scalar(leader)
            .fetch_optional(&database.pool)
            .await
            .expect("the query succeeds")
    })
    .await;
    assert!(leader.starts_with(r"host-\344\270\255:"), "{leader}");
}
