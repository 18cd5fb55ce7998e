//! The in-memory bus, as the developer of a service uses it.

mod bounds;
mod parity;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidings::DomainEvent;
use tidings::subscriber::{Event, HandlerError, Meta, State, Tx};
use tidings::testing::TestBus;

use crate::support::services::migrated_database;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPlaced {
    order_id: i64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "stock", id = "order_id")]
struct StockReserved {
    order_id: i64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "parcel", id = "order_id")]
struct ParcelSent {
    order_id: i64,
}

async fn reserve(Event(order): Event<OrderPlaced>) -> Result<StockReserved, HandlerError> {
    Ok(StockReserved {
        order_id: order.order_id,
    })
}

async fn send(Event(stock): Event<StockReserved>) -> Result<Option<ParcelSent>, HandlerError> {
    Ok((stock.order_id != 13).then_some(ParcelSent {
        order_id: stock.order_id,
    }))
}

#[tokio::test]
async fn a_cascade_over_two_subscribers_is_settled_with_its_causes() {
    let mut bus = TestBus::new();
    bus.add(bus.subscriber("inventory").on(reserve)).await;
    bus.add(bus.subscriber("shipping").on(send)).await;
    bus.publish(&OrderPlaced { order_id: 7 });
    bus.publish(&OrderPlaced { order_id: 13 });
    bus.settle().await;
    bus.assert_published::<StockReserved>(|stock| stock.order_id == 13);
    bus.assert_not_published::<OrderPlaced>();
    assert_eq!(bus.published::<ParcelSent>(), [ParcelSent { order_id: 7 }]);
    let [stock, .., parcel] = bus.published_envelopes() else {
        panic!("expected three published events")
    };
    assert_eq!(parcel.headers.causation_id(), Some(&*stock.id.to_string()));
    assert_eq!(
        parcel.headers.correlation_id(),
        stock.headers.correlation_id()
    );
}

#[tokio::test]
async fn an_event_that_is_delivered_twice_is_handled_once_and_one_whose_process_died_again() {
    let mut bus = TestBus::new();
    bus.add(bus.subscriber("inventory").on(reserve)).await;
    bus.deliver_twice().crash_before_commit(2);
    bus.publish(&OrderPlaced { order_id: 7 });
    bus.settle().await;
    assert_eq!(
        bus.published::<StockReserved>(),
        [StockReserved { order_id: 7 }]
    );
    assert_eq!(
        (
            bus.statistics("inventory").handled(),
            bus.statistics("inventory").duplicates()
        ),
        (1, 1)
    );
}

#[tokio::test]
async fn retries_take_no_time_and_what_never_works_is_dead() {
    async fn moody(
        Event(order): Event<OrderPlaced>,
        meta: Meta,
        State(calls): State<Arc<AtomicUsize>>,
    ) -> Result<(), HandlerError> {
        calls.fetch_add(1, Ordering::SeqCst);
        match (order.order_id, meta.attempt()) {
            (2, ..=3) => Err(HandlerError::retry("three times")),
            (3, _) => Err(HandlerError::retry("never")),
            _ => Ok(()),
        }
    }
    let (mut bus, calls) = (TestBus::new(), Arc::new(AtomicUsize::new(0)));
    bus.add(bus.subscriber("moody").on(moody).state(calls.clone()))
        .await;
    (2..=4).for_each(|order_id| bus.publish(&OrderPlaced { order_id }));
    bus.settle().await;
    assert_eq!(calls.load(Ordering::SeqCst), 4 + 5 + 1);
    assert_eq!(bus.dead_letters("moody"), ["never"]);
    assert!(bus.elapsed() > Duration::from_millis(300));
}

#[tokio::test]
async fn events_out_of_order_come_in_another_order_and_all_of_them() {
    async fn note(Event(order): Event<OrderPlaced>) -> Result<StockReserved, HandlerError> {
        Ok(StockReserved {
            order_id: order.order_id,
        })
    }
    let mut bus = TestBus::new();
    bus.add(bus.subscriber("inventory").on(note)).await;
    bus.deliver_out_of_order(7);
    (1..=20).for_each(|order_id| bus.publish(&OrderPlaced { order_id }));
    bus.settle().await;
    let mut seen: Vec<_> = bus
        .published::<StockReserved>()
        .into_iter()
        .map(|stock| stock.order_id)
        .collect();
    assert_ne!(seen, (1..=20).collect::<Vec<_>>());
    seen.sort_unstable();
    assert_eq!(seen, (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn with_a_real_database_effect_inbox_and_outbox_are_there() {
    async fn store(
        Event(order): Event<OrderPlaced>,
        mut tx: Tx,
    ) -> Result<StockReserved, HandlerError> {
        sqlx::query("insert into reservation (order_id) values ($1)")
            .bind(order.order_id)
            .execute(&mut *tx)
            .await?;
        Ok(StockReserved {
            order_id: order.order_id,
        })
    }
    let (database, mut bus) = (migrated_database().await, TestBus::new());
    sqlx::query("create table reservation (order_id bigint primary key)")
        .execute(&database.pool)
        .await
        .expect("a new table");
    bus.add(
        bus.subscriber("inventory")
            .on(store)
            .inbox(database.pool.clone()),
    )
    .await;
    bus.add(bus.subscriber("shipping").on(send)).await;
    bus.deliver_twice().crash_before_commit(1);
    bus.publish(&OrderPlaced { order_id: 7 });
    bus.settle().await;
    assert_eq!(bus.published::<ParcelSent>(), [ParcelSent { order_id: 7 }]);
    let count: i64 = sqlx::query_scalar("select count(*) from reservation")
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    assert_eq!(count, 1);
}

#[tokio::test]
async fn layers_of_tower_see_each_attempt_and_a_timeout_is_a_failed_one() {
    async fn slow_once(_: Event<OrderPlaced>, meta: Meta) -> Result<StockReserved, HandlerError> {
        if meta.attempt() == 1 {
            std::future::pending::<()>().await;
        }
        Ok(StockReserved {
            order_id: i64::from(meta.attempt()),
        })
    }
    let mut bus = TestBus::new();
    let timeout = tower::timeout::TimeoutLayer::new(Duration::from_millis(50));
    bus.add(
        bus.subscriber("slow")
            .on(slow_once)
            .layer(timeout)
            .layer(tower::limit::ConcurrencyLimitLayer::new(1)),
    )
    .await;
    bus.publish(&OrderPlaced { order_id: 7 });
    bus.settle().await;
    assert_eq!(
        bus.published::<StockReserved>(),
        [StockReserved { order_id: 2 }]
    );
    assert_eq!(bus.statistics("slow").failed_attempts(), 1);
}

#[tokio::test]
async fn a_handler_is_a_function_and_can_be_called() {
    let event = OrderPlaced { order_id: 7 };
    let meta = tidings::testing::meta(&event);
    assert_eq!(
        (meta.event_type(), &*meta.aggregate_id(), meta.attempt()),
        ("OrderPlaced", "7", 1)
    );
    assert_eq!(
        reserve(Event(event)).await.expect("the handler succeeds"),
        StockReserved { order_id: 7 }
    );
    let database = migrated_database().await;
    let mut tx = Tx::begin(&database.pool).await.expect("a transaction");
    tx.publish(&StockReserved { order_id: 7 })
        .await
        .expect("the event is published");
}

#[tokio::test]
async fn parked_events_and_retry_topics_are_followed_too() {
    use tidings::subscriber::{Escalation, Order, Retry};
    async fn late(
        Event(order): Event<OrderPlaced>,
        State(calls): State<Arc<AtomicUsize>>,
    ) -> Result<StockReserved, HandlerError> {
        if order.order_id == 1 && calls.fetch_add(1, Ordering::SeqCst) < 3 {
            return Err(HandlerError::retry("the fourth time"));
        }
        Ok(StockReserved {
            order_id: order.order_id,
        })
    }
    let mut bus = TestBus::new();
    let (minute, calls) = (Duration::from_secs(60), || Arc::new(AtomicUsize::new(0)));
    let topics = Escalation::retry_topics([minute, minute * 10, minute * 60]);
    bus.add(
        bus.subscriber("topics")
            .on(late)
            .state(calls())
            .retry(Retry::never())
            .order(Order::None)
            .escalation(topics),
    )
    .await;
    bus.publish(&OrderPlaced { order_id: 1 });
    bus.settle().await;
    assert_eq!(
        (
            bus.statistics("topics").retried(),
            bus.published::<StockReserved>().len()
        ),
        (3, 1)
    );
    assert!(bus.dead_letters("topics").is_empty());
}

/// Captured log output.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .expect("the lock is not poisoned")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_a_handler_logs_says_which_event_and_attempt_it_belongs_to() {
    async fn log(Event(_): Event<OrderPlaced>, meta: Meta) -> Result<(), HandlerError> {
        tracing::info!("at work");
        if meta.attempt() == 1 {
            Err(HandlerError::retry("the first time"))
        } else {
            Ok(())
        }
    }
    let text = Log::default();
    let writer = text.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let mut bus = TestBus::new();
    bus.add(bus.subscriber("inventory").on(log)).await;
    let mut envelope =
        tidings::event::Envelope::of(&OrderPlaced { order_id: 7 }).expect("a valid event");
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    envelope.headers.insert("traceparent", trace);
    let id = envelope.id;
    bus.publish_envelope(&envelope);
    bus.settle().await;
    let text =
        String::from_utf8(text.0.lock().expect("the lock is not poisoned").clone()).expect("text");
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.ends_with("at work"))
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    for (line, attempt) in lines.into_iter().zip(1..) {
        let said = [
            "handle{otel.kind=\"consumer\" subscriber=\"inventory\"".to_owned(),
            format!(
                "event.id=\"{id}\" event.type=\"OrderPlaced\" aggregate=\"7\" attempt={attempt} \
                 events=1 topic=\"order\""
            ),
            format!("traceparent=\"{trace}\""),
        ];
        assert!(said.iter().all(|said| line.contains(said)), "{line}");
    }
}

#[tokio::test]
async fn an_event_that_keeps_failing_is_reported_at_its_first_failure_when_it_is_parked_and_when_it_is_dead()
 {
    use tidings::subscriber::{Escalation, Retry};
    async fn always_fails(Event(_): Event<OrderPlaced>) -> Result<(), HandlerError> {
        Err(HandlerError::retry("the warehouse has no such shelf"))
    }
    let text = Log::default();
    let writer = text.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let (database, mut bus) = (migrated_database().await, TestBus::new());
    let quick = || Retry::exponential(3, Duration::from_millis(5)..Duration::from_millis(20));
    let park = Escalation::Park(quick());
    let subscriber = bus
        .subscriber("inventory")
        .on(always_fails)
        .inbox(database.pool.clone());
    bus.add(subscriber.retry(quick()).escalation(park)).await;
    let envelope =
        tidings::event::Envelope::of(&OrderPlaced { order_id: 7 }).expect("a valid event");
    bus.publish_envelope(&envelope);
    bus.settle().await;
    let text =
        String::from_utf8(text.0.lock().expect("the lock is not poisoned").clone()).expect("text");
    for (level, what) in [
        ("WARN", "failed at its first attempt"),
        ("WARN", "is parked in the table"),
        ("ERROR", "an event becomes a dead letter"),
    ] {
        let lines: Vec<&str> = text.lines().filter(|line| line.contains(what)).collect();
        let [line] = lines[..] else {
            panic!("one line with {what:?}: {text}")
        };
        let id = format!("event.id=\"{}\"", envelope.id);
        for part in [
            level,
            &id,
            "event.type=\"OrderPlaced\"",
            "topic=\"order\"",
            "always_fails",
            "the warehouse has no such shelf",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}
