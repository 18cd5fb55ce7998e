//! Bounds of the test bus: it returns within a bounded virtual time, or it reports why it does not
//! settle.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tidings::event::Envelope;
use tidings::subscriber::{
    Batch, Event, HandlerError, Retry, State, SubscriberState, Tombstone, Tx,
};
use tidings::testing::TestBus;
use tidings::{DomainEvent, Outbox};

use crate::support::services::migrated_database;

#[derive(Clone, Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPlaced {
    order_id: i64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "stock", id = "order_id")]
struct StockReserved {
    order_id: i64,
    note: String,
}

/// Orders and the members that handled them.
type Calls = Vec<(i64, usize)>;

/// Asserts that the bus does not settle and that the reason contains these parts.
async fn reason(bus: &mut TestBus, parts: &[&str]) {
    let began = Instant::now();
    let reason = bus
        .try_settle()
        .await
        .expect_err("it cannot settle")
        .to_string();
    for part in parts {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    assert!(
        bus.elapsed() < Duration::from_secs(3_600),
        "bounded virtual time: {:?}",
        bus.elapsed()
    );
    assert!(
        began.elapsed() < Duration::from_secs(120),
        "bounded real time: {:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_kill_switch_that_nothing_closes_is_a_reason_and_settle_panics_with_it() {
    async fn broken(_: Event<OrderPlaced>) -> Result<(), HandlerError> {
        Err(HandlerError::retry("the warehouse has burnt down"))
    }
    let mut bus = TestBus::new();
    bus.add(bus.subscriber("inventory").on(broken).retry(Retry::never()))
        .await;
    (0..60).for_each(|order_id| bus.publish(&OrderPlaced { order_id }));
    reason(
        &mut bus,
        &[
            "\"inventory\"",
            "kill switch",
            "the warehouse has burnt down",
            "more",
        ],
    )
    .await;
    assert_eq!(
        bus.statistics("inventory").state(),
        SubscriberState::PausedByKillSwitch
    );
    let panic = tokio::spawn(async move { bus.settle().await })
        .await
        .expect_err("it panics")
        .into_panic();
    let text = panic.downcast_ref::<String>().expect("text");
    assert!(
        text.contains("kill switch") && text.contains("bounds.rs"),
        "the reason and the caller: {text}"
    );
}

#[tokio::test]
async fn an_outage_that_does_not_end_is_a_reason_and_the_events_are_handled_once_it_has_ended() {
    async fn down(
        Event(order): Event<OrderPlaced>,
        State(is_down): State<Arc<AtomicBool>>,
    ) -> Result<StockReserved, HandlerError> {
        if is_down.load(Ordering::SeqCst) {
            return Err(HandlerError::unavailable("the cache is down"));
        }
        Ok(StockReserved {
            order_id: order.order_id,
            note: String::new(),
        })
    }
    let (mut bus, is_down) = (TestBus::new(), Arc::new(AtomicBool::new(true)));
    bus.add(bus.subscriber("inventory").on(down).state(is_down.clone()))
        .await;
    (0..3).for_each(|order_id| bus.publish(&OrderPlaced { order_id }));
    reason(
        &mut bus,
        &[
            "\"inventory\"",
            "an outage that does not end",
            "the cache is down",
            "OrderPlaced",
        ],
    )
    .await;
    is_down.store(false, Ordering::SeqCst);
    bus.settle().await;
    assert_eq!(
        (
            bus.published::<StockReserved>().len(),
            bus.statistics("inventory").handled()
        ),
        (3, 3)
    );
}

#[tokio::test]
async fn an_event_that_waits_for_newer_code_is_a_reason() {
    async fn old(_: Event<OrderPlaced>) -> Result<(), HandlerError> {
        Ok(())
    }
    let mut bus = TestBus::new();
    bus.add(bus.subscriber("inventory").on(old).wait_for_newer_code())
        .await;
    let mut newer = Envelope::of(&OrderPlaced { order_id: 1 }).expect("a valid event");
    newer.version = 2;
    bus.publish_envelope(&newer);
    reason(&mut bus, &["the event has version 2", "up to version 1"]).await;
}

#[tokio::test]
async fn a_connection_that_is_cut_at_each_attempt_is_a_reason() {
    async fn cut(_: Event<OrderPlaced>, mut tx: Tx) -> Result<(), HandlerError> {
        sqlx::query("select pg_terminate_backend(pg_backend_pid())")
            .execute(&mut *tx)
            .await?;
        Ok(())
    }
    let (database, mut bus) = (migrated_database().await, TestBus::new());
    bus.add(
        bus.subscriber("inventory")
            .on(cut)
            .inbox(database.pool.clone()),
    )
    .await;
    bus.publish(&OrderPlaced { order_id: 1 });
    reason(
        &mut bus,
        &["an outage that does not end", "terminating connection"],
    )
    .await;
}

#[tokio::test]
async fn an_event_that_is_put_off_for_ever_is_a_reason() {
    async fn later(_: Event<OrderPlaced>) -> Result<(), HandlerError> {
        Err(HandlerError::snooze(
            Duration::from_millis(100),
            "not before the moon is full",
        ))
    }
    let mut bus = TestBus::new();
    bus.add(bus.subscriber("inventory").on(later)).await;
    bus.publish(&OrderPlaced { order_id: 1 });
    reason(
        &mut bus,
        &["retried without end", "not before the moon is full"],
    )
    .await;
}

#[tokio::test]
async fn scheduled_events_pass_virtual_time_and_one_that_schedules_itself_for_ever_is_a_reason() {
    const MONTH: Duration = Duration::from_secs(30 * 86_400);
    async fn monthly(
        Event(order): Event<OrderPlaced>,
        mut tx: Tx,
    ) -> Result<StockReserved, HandlerError> {
        if order.order_id != 1 {
            Outbox::new()
                .publish_after(
                    &mut tx,
                    &OrderPlaced {
                        order_id: order.order_id - 1,
                    },
                    MONTH,
                )
                .await?;
        }
        Ok(StockReserved {
            order_id: order.order_id,
            note: String::new(),
        })
    }
    let (database, mut bus) = (migrated_database().await, TestBus::new());
    // Events that exist when the subscriber is added are left alone.
    let mut tx = database.pool.begin().await.expect("a transaction begins");
    Outbox::new()
        .publish_after(&mut tx, &OrderPlaced { order_id: 77 }, MONTH)
        .await
        .expect("the event is scheduled");
    tx.commit().await.expect("the commit succeeds");
    bus.add(
        bus.subscriber::<()>("inventory")
            .on(monthly)
            .inbox(database.pool.clone()),
    )
    .await;
    bus.publish(&OrderPlaced { order_id: 3 });
    bus.settle().await;
    let orders: Vec<i64> = bus
        .published::<StockReserved>()
        .into_iter()
        .map(|stock| stock.order_id)
        .collect();
    assert_eq!(orders, [3, 2, 1]);
    let months = bus.elapsed().as_secs_f64() / MONTH.as_secs_f64();
    assert!((1.99..2.01).contains(&months), "{months}");
    bus.publish(&OrderPlaced { order_id: 0 });
    let reason = bus
        .try_settle()
        .await
        .expect_err("it never ends")
        .to_string();
    assert!(reason.contains("of virtual time have passed"), "{reason}");
}

#[tokio::test]
async fn an_event_of_five_megabytes_is_refused_whoever_publishes_it() {
    async fn large(Event(order): Event<OrderPlaced>) -> Result<StockReserved, HandlerError> {
        Ok(StockReserved {
            order_id: order.order_id,
            note: "x".repeat(5_000_000),
        })
    }
    let mut bus = TestBus::new();
    bus.add(bus.subscriber("inventory").on(large)).await;
    bus.publish(&OrderPlaced { order_id: 1 });
    bus.settle().await;
    assert!(bus.published_envelopes().is_empty());
    let [reason] = &bus.dead_letters("inventory")[..] else {
        panic!("expected one dead letter")
    };
    assert!(reason.contains("max_event_bytes"), "{reason}");
    let publish = std::panic::AssertUnwindSafe(|| {
        bus.publish(&StockReserved {
            order_id: 1,
            note: "x".repeat(5_000_000),
        })
    });
    let panic = std::panic::catch_unwind(publish).expect_err("it is refused");
    assert!(
        panic
            .downcast_ref::<String>()
            .is_some_and(|text| text.contains("more than 1000000")),
        "the reason"
    );
}

#[tokio::test]
async fn without_an_inbox_an_event_that_comes_twice_is_handled_twice_and_batches_are_real() {
    async fn note(
        orders: Batch<OrderPlaced>,
        State(sizes): State<Arc<Mutex<Vec<usize>>>>,
    ) -> Result<(), HandlerError> {
        sizes
            .lock()
            .expect("the lock is not poisoned")
            .push(orders.len());
        Ok(())
    }
    let (mut bus, sizes) = (TestBus::new(), Arc::<Mutex<Vec<usize>>>::default());
    bus.add(
        bus.subscriber("inventory")
            .on(note)
            .batch(32)
            .concurrency(1)
            .state(sizes.clone()),
    )
    .await;
    bus.deliver_twice();
    (0..48).for_each(|n| bus.publish(&OrderPlaced { order_id: n % 7 }));
    bus.settle().await;
    assert_eq!(
        *sizes.lock().expect("the lock is not poisoned"),
        [32, 32, 32]
    );
    assert_eq!(
        (
            bus.statistics("inventory").handled(),
            bus.statistics("inventory").duplicates()
        ),
        (96, 0)
    );
}

#[tokio::test]
async fn members_of_a_group_share_its_events_by_partition_and_each_aggregate_has_one_member() {
    async fn note(
        Event(order): Event<OrderPlaced>,
        State((member, seen)): State<(usize, Arc<Mutex<Calls>>)>,
    ) -> Result<(), HandlerError> {
        seen.lock()
            .expect("the lock is not poisoned")
            .push((order.order_id, member));
        Ok(())
    }
    let (mut bus, seen) = (TestBus::new(), Arc::<Mutex<Calls>>::default());
    for member in 0..2 {
        bus.add(
            bus.subscriber("inventory")
                .on(note)
                .state((member, seen.clone())),
        )
        .await;
    }
    for _ in 0..3 {
        (0..20).for_each(|order_id| bus.publish(&OrderPlaced { order_id }));
        bus.settle().await;
    }
    let mut seen = seen.lock().expect("the lock is not poisoned").clone();
    assert_eq!(seen.len(), 60);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 20, "each order has one member");
    assert!(
        (0..2).all(|member| seen.iter().any(|(_, at)| *at == member)),
        "both have some: {seen:?}"
    );
}

#[tokio::test]
async fn tombstones_can_be_published_and_their_handlers_called() {
    async fn forget(
        erased: Tombstone<OrderPlaced>,
        State(calls): State<Arc<AtomicUsize>>,
    ) -> Result<Option<StockReserved>, HandlerError> {
        calls.fetch_add(1, Ordering::SeqCst);
        Ok(Some(StockReserved {
            order_id: erased
                .aggregate_id()
                .parse()
                .map_err(HandlerError::dead_letter)?,
            note: erased.topic().to_owned(),
        }))
    }
    let (mut bus, calls) = (TestBus::new(), Arc::<AtomicUsize>::default());
    bus.add(
        bus.subscriber("inventory")
            .on(forget)
            .state(calls.clone())
            .topic::<OrderPlaced>("customers.orders"),
    )
    .await;
    bus.publish_tombstone::<OrderPlaced>("7");
    bus.publish_tombstone::<StockReserved>("7");
    bus.deliver_twice();
    bus.publish_tombstone::<OrderPlaced>("8");
    bus.settle().await;
    let note = |order_id| StockReserved {
        order_id,
        note: "customers.orders".into(),
    };
    assert_eq!(bus.published::<StockReserved>(), [note(7), note(8)]);
    assert_eq!(
        (
            calls.load(Ordering::SeqCst),
            bus.statistics("inventory").duplicates()
        ),
        (2, 1)
    );
    let called = forget(tidings::testing::tombstone("9"), State(calls))
        .await
        .expect("the handler succeeds")
        .expect("an event");
    assert_eq!((called.order_id, &*called.note), (9, "order"));
}
