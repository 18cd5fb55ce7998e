//! Unusable topics: only their own events stop, and these follow in order once the topic is usable.

use std::time::{Duration, Instant};

use sqlx::PgPool;
use tidings::relay::{
    CheckState, DeliveryGuarantee, OnUndeliverable, RelayCheck, RelayOptions, SourceKind,
};

use super::parked::{numbers, sql};
use crate::support::eventually::{PATIENCE, eventually, until_number};
use crate::support::history::{
    Verdict, committed, create_accounts, expected, judge, write_concurrently,
};
use crate::support::records::{Reader, alter_topic, create_topic, create_topic_with};
use crate::support::running::{Place, Running};
use crate::support::services::migrated_database;

/// Publishes events `from` to `to` of an aggregate in one transaction.
async fn publish(pool: &PgPool, kind: &str, id: &str, from: i64, to: i64) {
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
                  select $1, $2, 'T', json_build_object('n', n) from generate_series($3, $4) n";
    sqlx::query(insert)
        .bind(kind)
        .bind(id)
        .bind(from)
        .bind(to)
        .execute(pool)
        .await
        .expect("the insert succeeds");
}

/// Returns the number of parked events and the reasons.
async fn parked(pool: &PgPool) -> (i64, Vec<String>) {
    let count = sqlx::query_scalar("select coalesce(sum(events), 0)::bigint from tidings.parked")
        .fetch_one(pool)
        .await
        .expect("the query succeeds");
    let reasons = "select distinct reason from tidings.parked where reason is not null order by 1";
    (
        count,
        sqlx::query_scalar(reasons)
            .fetch_all(pool)
            .await
            .expect("the query succeeds"),
    )
}

/// Waits until `events` events are parked. Returns the reasons.
async fn until_parked(pool: &PgPool, events: i64) -> Vec<String> {
    eventually(&format!("{events} events are parked"), async || {
        let (now, reasons) = parked(pool).await;
        if now == events {
            return Ok(reasons);
        }
        Err((now, reasons))
    })
    .await
}

/// Returns the options of a relay that creates no topics and routes each aggregate type to a topic
/// of its own.
fn options(place: &Place) -> RelayOptions {
    let mut options = place.options();
    options.topic = format!("{}-{{aggregatetype}}", place.topic);
    options.topics.create = false;
    options
}

fn topic(place: &Place, kind: &str) -> String {
    format!("{}-{kind}", place.topic)
}

async fn until_ready(relay: &Running) {
    eventually("the relay is ready", async || {
        let checks = relay.observer.checks();
        let fails = |check: &RelayCheck| matches!(check.state, CheckState::Failing(_));
        match checks.iter().any(fails) {
            true => Err(checks),
            false => Ok(()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_missing_topic_wait_by_themselves_and_follow_in_order_once_it_exists() {
    for (source, delivery) in [
        (SourceKind::Auto, DeliveryGuarantee::ExactlyOnce),
        (SourceKind::Poll, DeliveryGuarantee::AtLeastOnce),
    ] {
        let database = migrated_database().await;
        let (pool, place) = (&database.pool, Place::new(&database));
        create_topic(&place.brokers, &topic(&place, "good"), 2).await;
        let mut options = RelayOptions {
            source,
            delivery,
            ..options(&place)
        };
        options.topic_limits.give_up_after = Duration::from_secs(3);
        publish(pool, "missing", "a", 1, 3).await;
        publish(pool, "good", "a", 1, 3).await;
        let relay = Running::start(options.clone());
        let mut good = Reader::new(&place.brokers, &topic(&place, "good"));
        good.until_distinct(3);
        relay.says("kafka", "does not exist").await;
        publish(pool, "missing", "a", 4, 4).await;
        publish(pool, "good", "a", 4, 4).await;
        good.until_distinct(4);
        let reasons = until_parked(pool, 4).await;
        assert!(
            reasons.len() == 1 && reasons[0].contains("does not exist"),
            "{reasons:?}"
        );
        // Discarded events no longer affect readiness.
        until_ready(&relay).await;
        relay.stop().await;
        publish(pool, "missing", "a", 5, 5).await;
        let relay = Running::start(options);
        publish(pool, "missing", "b", 1, 1).await;
        until_parked(pool, 6).await;
        create_topic(&place.brokers, &topic(&place, "missing"), 2).await;
        until_parked(pool, 0).await;
        publish(pool, "missing", "a", 6, 6).await;
        let mut missing = Reader::new(&place.brokers, &topic(&place, "missing"));
        missing.until_distinct(7);
        relay.stop().await;
        let records = missing.read_to_the_end();
        assert_eq!(
            (numbers(records, "a"), numbers(records, "b")),
            (vec![1, 2, 3, 4, 5, 6], vec![1]),
            "{source:?}"
        );
        assert_eq!(numbers(good.read_to_the_end(), "a"), [1, 2, 3, 4]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_whose_name_collides_and_one_that_is_compacted_stop_their_own_events() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    create_topic(&place.brokers, &topic(&place, "a.b"), 1).await;
    create_topic_with(
        &place.brokers,
        &topic(&place, "compacted"),
        1,
        &[("cleanup.policy", "compact")],
    )
    .await;
    let mut options = RelayOptions {
        delivery: DeliveryGuarantee::AtLeastOnce,
        ..options(&place)
    };
    options.topics.create = true;
    for kind in ["a_b", "compacted", "good"] {
        publish(pool, kind, "x", 1, 2).await;
    }
    let relay = Running::start(options);
    Reader::new(&place.brokers, &topic(&place, "good")).until_distinct(2);
    let reasons = until_parked(pool, 4).await;
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("INVALID_TOPIC") && reason.contains("a_b")),
        "{reasons:?}"
    );
    assert!(
        reasons.iter().any(|reason| reason.contains("is compacted")),
        "{reasons:?}"
    );
    alter_topic(
        &place.brokers,
        &topic(&place, "compacted"),
        &[("cleanup.policy", "delete")],
    )
    .await;
    until_parked(pool, 2).await;
    relay.stop().await;
    assert_eq!(
        numbers(
            Reader::new(&place.brokers, &topic(&place, "compacted")).read_to_the_end(),
            "x"
        ),
        [1, 2]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn where_it_shall_stop_the_relay_waits_for_a_topic_for_a_while_and_stops_then() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    let mut options = options(&place);
    options.undeliverable.policy = OnUndeliverable::Stop;
    options.topic_limits.give_up_after = Duration::from_secs(2);
    publish(pool, "missing", "a", 1, 1).await;
    let relay = Running::start(options.clone());
    relay.says("kafka", "does not exist").await;
    let text = relay.refusal().await;
    assert!(
        text.contains("missing/a") && text.contains("does not exist"),
        "{text}"
    );
    options.topics.create = true;
    let relay = Running::start(options);
    Reader::new(&place.brokers, &topic(&place, "missing")).until_distinct(1);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_wait_for_one_topic_go_to_another_if_the_template_is_changed() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    publish(pool, "missing", "a", 1, 2).await;
    let relay = Running::start(options(&place));
    until_parked(pool, 2).await;
    relay.stop().await;
    let relay = place.start();
    until_parked(pool, 0).await;
    publish(pool, "missing", "a", 3, 3).await;
    let mut reader = place.reader();
    reader.until_distinct(3);
    relay.stop().await;
    assert_eq!(numbers(reader.read_to_the_end(), "a"), [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_wait_for_a_topic_are_given_up_by_command() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    publish(pool, "missing", "a", 1, 3).await;
    let relay = Running::start(options(&place));
    until_parked(pool, 3).await;
    sql(
        pool,
        "update tidings.parked set action = 'discard' where seq = (select min(seq) \
        from tidings.parked)",
    )
    .await;
    until_parked(pool, 2).await;
    create_topic(&place.brokers, &topic(&place, "missing"), 1).await;
    sql(pool, "update tidings.parked set action = 'retry'").await;
    until_parked(pool, 0).await;
    relay.stop().await;
    assert_eq!(
        numbers(
            Reader::new(&place.brokers, &topic(&place, "missing")).read_to_the_end(),
            "a"
        ),
        [2, 3]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_events_wait_for_a_topic_and_are_released_it_loses_repeats_and_misorders_nothing()
 {
    for step in [
        "parked:1",
        "parked:2",
        "release-sent:1",
        "release-committed:1",
        "released:1",
    ] {
        let database = migrated_database().await;
        let (pool, place) = (&database.pool, Place::new(&database));
        create_accounts(pool, 4).await;
        let without = ("TIDINGS_TOPICS_CREATE", "false");
        let mut dying = place.spawn_with(&[without, ("TIDINGS_TEST_DIE_AT", step)]);
        let (until, mut created) = (Instant::now() + 2 * PATIENCE, false);
        while !dying.has_died() {
            write_concurrently(pool, 2, 4, 5).await;
            if !created && step.starts_with("release") && parked(pool).await.0 > 10 {
                create_topic(&place.brokers, &place.topic, 2).await;
                created = true;
            }
            assert!(Instant::now() < until, "the relay never reaches {step}");
        }
        write_concurrently(pool, 2, 4, 5).await;
        let mut relay = place.spawn_with(&[without]);
        tokio::time::sleep(Duration::from_secs(2)).await;
        relay.kill();
        if !created {
            create_topic(&place.brokers, &place.topic, 2).await;
        }
        let last = place.spawn_with(&[without]);
        write_concurrently(pool, 2, 4, 5).await;
        let committed = committed(pool).await;
        let mut reader = place.reader();
        reader.until_distinct(expected(&committed));
        until_parked(pool, 0).await;
        drop(last);
        assert_eq!(
            judge(&committed, reader.read_to_the_end()),
            Verdict::default(),
            "after a death at {step}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_types_at_once_do_not_hold_up_others_and_become_topics_in_their_turn() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    create_topic(&place.brokers, &topic(&place, "good"), 1).await;
    let mut options = options(&place);
    options.topics.create = true;
    options.topics.partitions = Some(1);
    options.topic_limits.create_max_per_minute = 20;
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
                  select 'k' || n, 'x', 'T', json_build_object('n', n) \
                  from generate_series(1, 60) n";
    sql(pool, insert).await;
    publish(pool, "good", "x", 1, 5).await;
    let relay = Running::start(options);
    Reader::new(&place.brokers, &topic(&place, "good")).until_distinct(5);
    eventually("the limit is the reason", async || {
        let (events, reasons) = parked(pool).await;
        let limited = reasons
            .iter()
            .any(|reason| reason.contains("topics.create_max_per_minute"));
        if limited && events <= 40 {
            return Ok(());
        }
        Err((events, reasons))
    })
    .await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_topics_that_exist_are_found_by_one_question() {
    let database = migrated_database().await;
    let (pool, place) = (&database.pool, Place::new(&database));
    for n in 1..=60 {
        create_topic(&place.brokers, &topic(&place, &format!("k{n}")), 1).await;
    }
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
                  select 'k' || (1 + n % 60), 'x', 'T', json_build_object('n', n) \
                  from generate_series(1, 1200) n";
    sql(pool, insert).await;
    let relay = Running::start(options(&place));
    let published = "select coalesce(max(published), 0) from tidings.relay";
    until_number(pool, "all are published", published, |events| {
        events >= 1200
    })
    .await;
    assert_eq!(parked(pool).await.0, 0);
    relay.stop().await;
}
