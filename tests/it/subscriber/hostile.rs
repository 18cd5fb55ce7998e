//! Hostile conditions for subscribers: handlers that block, malformed records, outages that end
//! unnoticed, and topics that are deleted and created.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use dev_services::PostgresOptions;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, client::DefaultClientContext};
use sqlx::postgres::PgPoolOptions;
use tidings::subscriber::{
    Escalation, Event, HandlerError, KillSwitch, Meta, Order, Retry, State, SubscriberState, Tx,
};
use tidings::{Bus, Subscriber, kafka};
use tokio_util::sync::CancellationToken;

use super::raw_record::produce;
use crate::support::place::{
    Changed, PATIENCE, Place, assert_once_and_in_order, count, create_effects, effect, start, until,
};
use crate::support::records::byte_headers;
use crate::support::records::create_topic;
use crate::support::services::{migrated_database, migrated_database_on, own_postgres};

const AT_ONCE: Duration = Duration::from_millis(5);

fn quick(attempts: u32) -> Retry {
    Retry::exponential(attempts, AT_ONCE..AT_ONCE)
}

async fn fine(_: Event<Changed>) -> Result<(), HandlerError> {
    Ok(())
}

/// Returns a place whose members soon notice new and deleted topics.
async fn attentive(partitions: i32) -> Place {
    noticing(partitions, 200).await
}

/// Returns a place whose members notice new and deleted topics within this number of milliseconds.
async fn noticing(partitions: i32, within: u32) -> Place {
    let mut place = Place::new(partitions).await;
    let properties = [(
        "topic.metadata.refresh.interval.ms".to_owned(),
        within.to_string(),
    )];
    place.bus = Bus::new(kafka::Settings {
        brokers: place.brokers.clone(),
        properties: properties.into(),
    });
    place
}

fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()
        .expect("a client")
}

async fn delete_topic(brokers: &str, topic: &str) {
    let answer = admin(brokers)
        .delete_topics(&[topic], &AdminOptions::new())
        .await
        .expect("the broker answers");
    assert!(answer.iter().all(Result::is_ok), "{answer:?}");
}

async fn grow_to(place: &Place, partitions: usize) {
    let grown = [NewPartitions::new(&place.topic, partitions)];
    let answer = admin(&place.brokers)
        .create_partitions(&grown, &AdminOptions::new())
        .await
        .expect("the broker answers");
    assert!(answer.iter().all(Result::is_ok), "{answer:?}");
}

/// Sends an event to this partition as soon as a broker knows the partition.
async fn send_to(place: &Place, topic: &str, partition: i32) {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &place.brokers)
        .create()
        .expect("a client");
    let record = || {
        let headers = OwnedHeaders::new().insert(Header {
            key: "eventType",
            value: Some("Changed"),
        });
        FutureRecord::to(topic)
            .partition(partition)
            .key("a0")
            .payload(r#"{"account":"a0","version":9}"#)
            .headers(headers)
    };
    until("the partition exists", async || {
        producer.send(record(), Duration::from_secs(30)).await.ok()
    })
    .await;
}

// === outages that end unnoticed ===

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_that_ends_with_a_parked_event_that_fails_as_before_stops_nothing() {
    /// The first event fails, is parked, meets an outage, and fails again.
    async fn fail(
        Event(changed): Event<Changed>,
        State(tries): State<Arc<AtomicUsize>>,
    ) -> Result<(), HandlerError> {
        match changed.account.as_str() {
            "a0" if tries.fetch_add(1, Ordering::SeqCst) == 1 => {
                Err(HandlerError::unavailable("down for a moment"))
            }
            "a0" => Err(HandlerError::retry("as always")),
            _ => Ok(()),
        }
    }
    let (database, place, tries) = (
        migrated_database().await,
        Place::new(1).await,
        Arc::<AtomicUsize>::default(),
    );
    let park = Escalation::Park(Retry::exponential(1_000, AT_ONCE..AT_ONCE));
    let subscriber = place
        .subscriber()
        .on(fail)
        .state(tries.clone())
        .inbox(database.pool.clone());
    let running = start!(
        subscriber
            .retry(Retry::never())
            .escalation(park)
            .kill_switch(None)
    );
    place.publish(1, 1..=1).await;
    until("the outage is over", async || {
        (tries.load(Ordering::SeqCst) > 2).then_some(())
    })
    .await;
    place.publish(3, 2..=2).await;
    running
        .until("others are handled", |seen| {
            seen.handled() == 2 && seen.state() == SubscriberState::Running
        })
        .await;
    running.stop().await;
}

/// Events of "down" fail with `fails` while their topic exists, and then the topic is deleted.
/// Other events must still be handled.
async fn goes_with_its_partition(fails: fn() -> HandlerError, switch: Option<KillSwitch>) {
    let (place, doomed) = (attentive(1).await, Place::new(1).await);
    let handle = move |Event(changed): Event<Changed>| async move {
        if changed.account == "down" {
            Err(fails())
        } else {
            Ok(())
        }
    };
    let subscriber: Subscriber<()> = place.bus.subscriber(&place.group);
    let subscriber = subscriber
        .topic::<Changed>(&place.topic)
        .topic::<Changed>(&doomed.topic)
        .on(handle);
    let running = start!(subscriber.retry(Retry::never()).kill_switch(switch));
    doomed
        .send(&[doomed.envelope(&Changed {
            account: "down".into(),
            version: 1,
        })])
        .await;
    running.until("it pauses", |seen| seen.is_paused()).await;
    place.publish(1, 1..=1).await;
    assert_eq!(running.statistics.handled(), 0);
    delete_topic(&doomed.brokers, &doomed.topic).await;
    running
        .until("the remaining events are handled", |seen| {
            seen.handled() == 1 && !seen.is_paused()
        })
        .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_goes_while_it_alone_knows_of_an_outage_leaves_no_subscriber_paused_for_ever()
 {
    goes_with_its_partition(|| HandlerError::unavailable("down"), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_goes_while_it_alone_probes_leaves_no_subscriber_paused_for_ever() {
    let switch = KillSwitch::new(1, Duration::from_secs(60)).pause(Duration::from_millis(20));
    goes_with_its_partition(|| HandlerError::retry("fails"), Some(switch)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_down_at_the_start_is_waited_for() {
    let mut server = own_postgres(PostgresOptions::default()).await;
    let (database, place) = (
        migrated_database_on(&server.url()).await,
        Place::new(2).await,
    );
    create_effects(&database.pool).await;
    let pool = PgPoolOptions::new()
        .acquire_timeout(Duration::from_millis(500))
        .connect_lazy(&database.url)
        .expect("a URL");
    tokio::task::block_in_place(|| server.stop()).expect("the service stops");
    let running = start!(
        place
            .subscriber::<()>()
            .on(count)
            .inbox(pool)
            .retry(Retry::never())
    );
    place.publish(5, 1..=4).await;
    tokio::task::block_in_place(|| server.start_again()).expect("the service starts");
    running
        .until("all are handled", |seen| seen.handled() == 20)
        .await;
    assert_eq!(
        (
            running.statistics.failed_attempts(),
            running.statistics.parked()
        ),
        (0, 0)
    );
    running.stop().await;
    assert_once_and_in_order(&database.pool, 5, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_read_only_for_a_while_is_used_again_and_costs_no_event_an_attempt() {
    let (database, place) = (migrated_database().await, Place::new(2).await);
    create_effects(&database.pool).await;
    let mut admin = database
        .pool
        .acquire()
        .await
        .expect("a session that stays writable");
    let pool = PgPoolOptions::new()
        .max_connections(3)
        .connect(&database.url)
        .await
        .expect("the connection succeeds");
    let running = start!(
        place
            .subscriber::<()>()
            .on(count)
            .inbox(pool)
            .retry(Retry::never())
    );
    place.publish(5, 1..=2).await;
    running
        .until("the first are handled", |seen| seen.handled() == 10)
        .await;
    let name: String = sqlx::query_scalar("select current_database()")
        .fetch_one(&mut *admin)
        .await
        .expect("a name");
    let set = |value| {
        sqlx::AssertSqlSafe(format!(
            "alter database {name} set default_transaction_read_only = {value}"
        ))
    };
    sqlx::raw_sql(set("on"))
        .execute(&mut *admin)
        .await
        .expect("the statement succeeds");
    let end_others = "select pg_terminate_backend(pid) from pg_stat_activity \
        where datname = current_database() and pid <> pg_backend_pid()";
    sqlx::raw_sql(end_others)
        .execute(&mut *admin)
        .await
        .expect("the statement succeeds");
    place.publish(5, 3..=6).await;
    running
        .until("it pauses", |seen| {
            seen.state() == SubscriberState::PausedByOutage
        })
        .await;
    sqlx::raw_sql(set("off"))
        .execute(&mut *admin)
        .await
        .expect("the setting is restored");
    running
        .until("all are handled", |seen| seen.handled() == 30)
        .await;
    assert_eq!(
        (
            running.statistics.failed_attempts(),
            running.statistics.parked()
        ),
        (0, 0)
    );
    running.stop().await;
    let effects: i64 = sqlx::query_scalar("select count(*) from effect")
        .fetch_one(&mut *admin)
        .await
        .expect("the query succeeds");
    assert_eq!(effects, 30);
}

// === handlers that block ===

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_handler_that_blocks_its_thread_keeps_neither_the_shutdown_nor_the_next_member_waiting() {
    let place = Place::new(1).await;
    place.publish(1, 1..=1).await;
    let (release, released) = mpsc::channel::<()>();
    let (released, entered) = (Arc::new(Mutex::new(released)), Arc::<AtomicBool>::default());
    let blocks = {
        let entered = entered.clone();
        move |_: Event<Changed>| {
            let (released, entered) = (released.clone(), entered.clone());
            async move {
                entered.store(true, Ordering::SeqCst);
                let _ = released
                    .lock()
                    .expect("the lock is not poisoned")
                    .recv_timeout(PATIENCE);
                Ok::<_, HandlerError>(())
            }
        }
    };
    let blocked = start!(
        place
            .subscriber::<()>()
            .on(blocks)
            .drain_timeout(Duration::from_millis(100))
    );
    until("it blocks", async || {
        entered.load(Ordering::SeqCst).then_some(())
    })
    .await;
    tokio::time::timeout(PATIENCE / 3, blocked.stop())
        .await
        .expect("the shutdown does not wait for the handler");
    let next = start!(
        place
            .subscriber::<()>()
            .on(async |_: Event<Changed>| Ok::<_, HandlerError>(()))
    );
    tokio::time::timeout(
        PATIENCE / 3,
        next.until("the next member handles it", |seen| seen.handled() == 1),
    )
    .await
    .expect("the next member does not wait");
    release.send(()).expect("the handler still waits");
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_given_up_between_two_events_that_take_their_time() {
    let place = Place::new(1).await;
    place.publish(200, 1..=1).await;
    let handled = Arc::<AtomicUsize>::default();
    let busy = {
        let handled = handled.clone();
        move |_: Event<Changed>| {
            let handled = handled.clone();
            async move {
                // A blocking sleep, which keeps the thread busy.
                std::thread::sleep(Duration::from_millis(20));
                handled.fetch_add(1, Ordering::SeqCst);
                Ok::<_, HandlerError>(())
            }
        }
    };
    let running = start!(place.subscriber::<()>().on(busy));
    until("some are handled", async || {
        (handled.load(Ordering::SeqCst) > 3).then_some(())
    })
    .await;
    running.stop().await;
    let first = handled.load(Ordering::SeqCst);
    assert!(
        first < 100,
        "{first} events were handled before the shutdown was noticed"
    );
    let next = start!(
        place
            .subscriber::<()>()
            .on(async |_: Event<Changed>| Ok::<_, HandlerError>(()))
    );
    next.until("the rest is handled", |seen| {
        seen.handled() as usize == 200 - first
    })
    .await;
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_that_take_their_time_one_at_a_time_leave_nothing_unread() {
    let place = Place::new(2).await;
    place.publish(80, 1..=1).await;
    // Longer than a partition runs without a break.
    let busy = async |_: Event<Changed>| {
        std::thread::sleep(Duration::from_millis(8));
        Ok::<_, HandlerError>(())
    };
    let running = start!(place.subscriber::<()>().on(busy).concurrency(1).buffer(4));
    running
        .until("all are handled", |seen| seen.handled() == 80)
        .await;
    running.stop().await;
}

// === order ===

/// Acts before the effect as the event determines: completes at once, yields, sleeps, fails, or
/// combines these.
async fn do_anything(changed: &Changed, meta: &Meta) -> Result<(), HandlerError> {
    let chance = changed.account.bytes().map(usize::from).sum::<usize>() * 31
        + changed.version as usize * 17;
    match chance % 5 {
        0 | 1 => {}
        2 => tokio::task::yield_now().await,
        3 => tokio::time::sleep(Duration::from_micros(300)).await,
        _ if meta.attempt() > 1 => {}
        _ if chance.is_multiple_of(2) => return Err(HandlerError::retry("the second time")),
        _ => {
            tokio::task::yield_now().await;
            return Err(HandlerError::retry("the second time, and not at once"));
        }
    }
    Ok(())
}

type Seen = Arc<Mutex<Vec<(String, i32, i32, i64)>>>;

async fn note(
    Event(changed): Event<Changed>,
    meta: Meta,
    State(seen): State<Seen>,
) -> Result<(), HandlerError> {
    do_anything(&changed, &meta).await?;
    seen.lock().expect("the lock is not poisoned").push((
        changed.account,
        changed.version,
        meta.partition(),
        meta.offset(),
    ));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_wait_fail_or_do_neither_are_handled_once_and_in_order_however_many_at_once() {
    let place = Place::new(3).await;
    place.publish(25, 1..=20).await;
    let ways = [
        (Order::Aggregate, 64, 1),
        (Order::Aggregate, 1, 1),
        (Order::Aggregate, 7, 4),
        (Order::Partition, 64, 1),
        (Order::None, 5, 1),
    ];
    let ways = ways.map(|(order, concurrency, batch)| {
        let seen = Seen::default();
        let subscriber: Subscriber<Seen> = place
            .bus
            .subscriber(format!("{}-{order:?}-{concurrency}", place.group));
        let subscriber = subscriber
            .topic::<Changed>(&place.topic)
            .on(note)
            .state(seen.clone())
            .retry(quick(20));
        (
            order,
            seen,
            start!(
                subscriber
                    .order(order)
                    .concurrency(concurrency)
                    .batch(batch)
                    .buffer(40)
            ),
        )
    });
    for (order, seen, running) in ways {
        running
            .until("all are handled", |seen| seen.handled() == 500)
            .await;
        assert_eq!(
            (
                running.statistics.running(),
                running.statistics.dead_lettered()
            ),
            (0, 0),
            "{order:?}"
        );
        running.stop().await;
        let seen = seen.lock().expect("the lock is not poisoned");
        let (mut lanes, mut once) = (HashMap::<String, (i32, i64)>::new(), HashSet::new());
        for (account, version, partition, offset) in &*seen {
            // A failed batch is handled again one event at a time, and nothing records which events
            // were handled.
            if !once.insert((account, version)) {
                continue;
            }
            let lane = match order {
                Order::Aggregate => account.clone(),
                Order::Partition => partition.to_string(),
                _ => continue,
            };
            let before = lanes.insert(lane, (*version, *offset));
            assert!(
                before.is_none_or(|(_, before)| before < *offset),
                "{order:?}: {account} {version} after {before:?}"
            );
        }
        assert_eq!(once.len(), 500, "{order:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_with_fewer_connections_than_handlers_costs_time_alone() {
    async fn anything(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        do_anything(&changed, &meta).await?;
        effect(&mut tx, &changed, &meta).await
    }
    let (database, place) = (migrated_database().await, Place::new(4).await);
    create_effects(&database.pool).await;
    place.publish(20, 1..=5).await;
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect(&database.url)
        .await
        .expect("the connection succeeds");
    let running = start!(
        place
            .subscriber::<()>()
            .on(anything)
            .inbox(pool)
            .concurrency(32)
            .retry(quick(5))
    );
    running
        .until("all are handled", |seen| seen.handled() == 100)
        .await;
    assert_eq!(running.statistics.parked(), 0);
    running.stop().await;
    assert_once_and_in_order(&database.pool, 20, 5).await;
}

// === malformed records ===

#[tokio::test(flavor = "multi_thread")]
async fn records_that_nobody_should_write_stop_nobody_elses() {
    async fn refuse(Event(changed): Event<Changed>) -> Result<(), HandlerError> {
        if changed.version == 0 {
            Err(HandlerError::retry("never"))
        } else {
            Ok(())
        }
    }
    let place = Place::new(1).await;
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &place.brokers)
        .create()
        .expect("a producer");
    let send = async |key: Option<&[u8]>, value: Option<&[u8]>, headers: &[(&str, &[u8])]| {
        let record = FutureRecord::<[u8], [u8]> {
            key,
            payload: value,
            ..FutureRecord::to(&place.topic)
        }
        .headers(byte_headers(headers));
        producer
            .send(record, PATIENCE)
            .await
            .expect("the record is sent");
    };
    let event = |id: &'static [u8]| -> Vec<(&'static str, &'static [u8])> {
        vec![
            ("ce_specversion", b"1.0"),
            ("ce_type", b"Changed"),
            ("ce_source", b"/x"),
            ("ce_id", id),
        ]
    };
    let (fails, works) = (
        Some(&br#"{"account":"a","version":0}"#[..]),
        Some(&br#"{"account":"a","version":1}"#[..]),
    );
    let unreadable = [(b"\xff\xfe".to_vec(), &b"x"[..])];
    until("the broker takes it", async || {
        produce(&place.brokers, &place.topic, b"k", b"{}", &unreadable).then_some(())
    })
    .await;
    // Invalid UTF-8 in each attribute.
    for (name, id) in [
        ("ce_type", &b"1"[..]),
        ("ce_source", b"2"),
        ("ce_id", b"3"),
        ("ce_subject", b"4"),
        ("ce_dataversion", b"5"),
    ] {
        send(
            Some(b"b"),
            works,
            &[event(id), vec![(name, b"\xff")]].concat(),
        )
        .await;
    }
    // Invalid due times, origins and retry counters.
    for (at, due) in [i64::MIN, i64::MAX, -1, 0].iter().enumerate() {
        let (key, due) = (format!("due{at}"), due.to_string());
        send(
            Some(key.as_bytes()),
            works,
            &[event(b"6"), vec![("tidings_due", due.as_bytes())]].concat(),
        )
        .await;
    }
    for origin in ["not a topic!", "", "\0", ".."] {
        send(
            Some(b"c"),
            fails,
            &[
                event(b"7"),
                vec![("kafka_dlt-original-topic", origin.as_bytes())],
            ]
            .concat(),
        )
        .await;
    }
    send(
        Some(b"c"),
        fails,
        &[event(b"8"), vec![("kafka_dlt-original-topic", &[0xff; 3])]].concat(),
    )
    .await;
    send(
        Some(b"c"),
        fails,
        &[
            event(b"9"),
            vec![("tidings_retry", b"18446744073709551615")],
        ]
        .concat(),
    )
    .await;
    // No key, an empty key, and a key that is not text; large values; no value.
    for key in [None, Some(&b""[..]), Some(b"\xff")] {
        send(key, works, &event(b"10")).await;
    }
    let large = format!(r#"{{"account":"{}","version":1}}"#, "x".repeat(900_000));
    for _ in 0..20 {
        send(Some(b"d"), Some(large.as_bytes()), &event(b"11")).await;
    }
    send(None, None, &event(b"12")).await;
    // Unknown types, each one different.
    let types: Vec<String> = (0..10_000).map(|n| format!("Unknown{n}")).collect();
    let send_unknown =
        async |unknown: &String| send(None, works, &[("eventType", unknown.as_bytes())]).await;
    futures_util::future::join_all(types.iter().map(send_unknown)).await;
    send(Some(b"e"), works, &event(b"13")).await;
    let build = |group: &str, escalation| {
        let subscriber: Subscriber<()> = place.bus.subscriber(format!("{}-{group}", place.group));
        subscriber
            .topic::<Changed>(&place.topic)
            .on(refuse)
            .retry(quick(2))
            .kill_switch(None)
            .escalation(escalation)
    };
    let retries = start!(build(
        "retries",
        Escalation::retry_topics([Duration::from_millis(50)])
    ));
    for running in [retries, start!(build("buries", Escalation::DeadLetter))] {
        // Dead letters are the record without a type, the five attributes and the six that fail.
        // The tombstone is skipped.
        running
            .until("all have ended", |seen| {
                seen.handled() == 28 && seen.dead_lettered() == 12 && seen.unknown_types() == 10_001
            })
            .await;
        assert!(!running.statistics.is_paused());
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_takes_no_event_before_it_is_due() {
    async fn early(
        _: Event<Changed>,
        meta: Meta,
        State(early): State<Arc<AtomicUsize>>,
    ) -> Result<(), HandlerError> {
        let Some(due) = meta.header("tidings_due") else {
            return Err(HandlerError::retry("the first time"));
        };
        let due: i64 = due.parse().expect("a number");
        early.fetch_add(
            usize::from(chrono::Utc::now().timestamp_millis() < due),
            Ordering::SeqCst,
        );
        Ok(())
    }
    let (place, too_early) = (Place::new(1).await, Arc::<AtomicUsize>::default());
    place.publish(30, 1..=2).await;
    let delays = [Duration::from_millis(700)];
    let subscriber = place
        .subscriber()
        .on(early)
        .state(too_early.clone())
        .retry(Retry::never())
        .kill_switch(None);
    let running = start!(
        subscriber
            .escalation(Escalation::retry_topics(delays))
            .order(Order::None)
            .batch(16)
    );
    running
        .until("all are handled", |seen| seen.handled() == 60)
        .await;
    running.stop().await;
    assert_eq!(too_early.load(Ordering::SeqCst), 0);
}

// === topics and members that come and leave ===

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_and_made_anew_is_read_from_its_beginning() {
    async fn all_but_one(
        Event(changed): Event<Changed>,
        State(seen): State<Seen>,
    ) -> Result<(), HandlerError> {
        if changed.account == "a0" && changed.version == 1 {
            return Err(HandlerError::snooze(
                Duration::from_secs(3_600),
                "not at all",
            ));
        }
        seen.lock().expect("the lock is not poisoned").push((
            changed.account,
            changed.version,
            0,
            0,
        ));
        Ok(())
    }
    let (place, seen) = (attentive(1).await, Seen::default());
    place.publish(10, 1..=1).await;
    let build = || place.subscriber().on(all_but_one).state(seen.clone());
    let first = start!(build());
    first
        .until("all others are handled", |seen| seen.handled() == 9)
        .await;
    first.stop().await;
    // The second member restores from the commit's metadata which events beyond the first are
    // finished.
    let second = start!(build());
    place.publish(1, 2..=2).await;
    second
        .until("it reads", |seen| {
            seen.partitions()
                .iter()
                .any(|partition| partition.unfinished == 2)
        })
        .await;
    delete_topic(&place.brokers, &place.topic).await;
    second
        .until("it has noticed", |seen| seen.partitions().is_empty())
        .await;
    create_topic(&place.brokers, &place.topic, 1).await;
    let again = place.envelope(&Changed {
        account: "again".into(),
        version: 3,
    });
    until("the new topic is known", async || {
        place.bus.publish_envelope(&again).await.ok()
    })
    .await;
    place.publish(9, 3..=3).await;
    until("all of the new topic are handled", async || {
        (seen
            .lock()
            .expect("the lock is not poisoned")
            .iter()
            .filter(|(_, version, ..)| *version == 3)
            .count()
            == 10)
            .then_some(())
    })
    .await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_begins_at_the_end_misses_nothing_from_then_on_and_no_letter_to_itself() {
    let place = attentive(1).await;
    place.publish(1, 1..=1).await;
    let build = || place.subscriber::<()>().on(fine).from_end();
    let first = start!(build());
    first
        .until("it has begun", |seen| !seen.partitions().is_empty())
        .await;
    first.stop().await;
    place.publish(1, 2..=2).await;
    let second = start!(build());
    second
        .until("events from its absence are handled", |seen| {
            seen.handled() == 1
        })
        .await;
    // A topic that already contains a record when the member finds it.
    let redriven = Place {
        topic: format!("{}.{}.redrive", place.topic, place.group),
        ..attentive(1).await
    };
    create_topic(&redriven.brokers, &redriven.topic, 1).await;
    redriven.publish(1, 3..=3).await;
    second
        .until("replayed events are handled", |seen| seen.handled() == 2)
        .await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_added_and_topics_that_are_made_are_read_from_their_beginning_also_by_who_began_at_the_end()
 {
    for from_end in [false, true] {
        // Long enough for records to exist before a member knows of their partition.
        let place = noticing(1, 3_000).await;
        place.publish(1, 1..=1).await;
        let later = Place {
            topic: format!("{}-later", place.topic),
            group: place.group.clone(),
            ..Place::new(1).await
        };
        let subscriber = place
            .subscriber::<()>()
            .on(fine)
            .topic::<Changed>(&later.topic);
        let running = start!(if from_end {
            subscriber.from_end()
        } else {
            subscriber
        });
        running
            .until("it has begun", |seen| !seen.partitions().is_empty())
            .await;
        let before = u64::from(!from_end);
        running
            .until(
                "it has handled the existing event if it starts at the beginning",
                |seen| seen.handled() == before,
            )
            .await;

        grow_to(&place, 3).await;
        create_topic(&later.brokers, &later.topic, 2).await;
        for (topic, partition) in [
            (&place.topic, 1),
            (&place.topic, 2),
            (&later.topic, 0),
            (&later.topic, 1),
        ] {
            send_to(&place, topic, partition).await;
        }
        running
            .until(
                "events sent before it noticed the topic are handled",
                |seen| seen.handled() == before + 4,
            )
            .await;
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_anew_and_what_is_added_while_nobody_runs_are_read_from_their_beginning_too()
 {
    let place = noticing(1, 3_000).await;
    place.publish(1, 1..=1).await;
    let build = || place.subscriber::<()>().on(fine).from_end();
    let first = start!(build());
    first
        .until("it has begun", |seen| !seen.partitions().is_empty())
        .await;
    delete_topic(&place.brokers, &place.topic).await;
    first
        .until("it has noticed", |seen| seen.partitions().is_empty())
        .await;
    create_topic(&place.brokers, &place.topic, 1).await;
    send_to(&place, &place.topic, 0).await;
    first
        .until("events of the new topic are handled", |seen| {
            seen.handled() == 1
        })
        .await;
    first.stop().await;
    grow_to(&place, 2).await;
    send_to(&place, &place.topic, 1).await;
    let second = start!(build());
    second
        .until("events of the new partition are handled", |seen| {
            seen.handled() == 1
        })
        .await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_begin_at_the_end_together_miss_nothing_of_each_others_partitions() {
    let place = attentive(4).await;
    place.publish(8, 1..=1).await;
    let build = || place.subscriber::<()>().on(fine).from_end();
    let (one, other) = (start!(build()), start!(build()));
    until("all partitions are taken", async || {
        (one.statistics.partitions().len() + other.statistics.partitions().len() == 4).then_some(())
    })
    .await;
    place.publish(8, 2..=2).await;
    until("all are handled", async || {
        (one.statistics.handled() + other.statistics.handled() == 8).then_some(())
    })
    .await;
    one.stop().await;
    let before = other.statistics.handled();
    place.publish(8, 3..=3).await;
    other
        .until(
            "the remaining events of the other member are handled",
            |seen| seen.handled() == before + 8,
        )
        .await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_members_with_one_instance_id_the_second_goes_on_and_the_first_says_why_not() {
    let place = Place::new(2).await;
    place.publish(5, 1..=1).await;
    let build = || {
        place
            .subscriber::<()>()
            .on(async |_: Event<Changed>| Ok::<_, HandlerError>(()))
            .instance_id("the-same")
    };
    let (first, shutdown) = (build(), CancellationToken::new());
    let statistics = first.statistics();
    let first = tokio::spawn(first.run(shutdown));
    until("the first takes part", async || {
        (statistics.handled() == 5).then_some(())
    })
    .await;
    let second = start!(build());
    let ended = tokio::time::timeout(PATIENCE, first)
        .await
        .expect("the process ends")
        .expect("the task does not panic");
    assert!(
        ended
            .as_ref()
            .is_err_and(|error| error.to_string().contains("kafka does not accept")),
        "{ended:?}"
    );
    assert_eq!(statistics.state(), SubscriberState::Stopped);
    place.publish(5, 2..=2).await;
    second
        .until("the second handles new events", |seen| seen.handled() >= 5)
        .await;
    second.stop().await;
}

// === effects ===

#[tokio::test(flavor = "multi_thread")]
async fn an_effect_that_postgres_has_refused_is_not_taken_for_made_though_the_handler_says_so() {
    async fn careless(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        effect(&mut tx, &changed, &meta).await?;
        if meta.attempt() == 1 {
            // From here on the transaction can only be rolled back, even by `commit`.
            let _ = sqlx::query("select 1 / 0").execute(&mut *tx).await;
        }
        Ok(())
    }
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    place.publish(3, 1..=2).await;
    let running = start!(
        place
            .subscriber::<()>()
            .on(careless)
            .inbox(database.pool.clone())
            .retry(quick(3))
    );
    running
        .until("all are handled", |seen| seen.handled() == 6)
        .await;
    running.stop().await;
    assert_once_and_in_order(&database.pool, 3, 2).await;
}
