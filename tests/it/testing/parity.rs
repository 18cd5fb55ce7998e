//! Parity: a scenario has the same result on the in-memory bus and on real services.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidings::event::{AggregateId, Envelope};
use tidings::subscriber::{
    Batch, Escalation, Event, HandlerError, Inbox, Isolation, Meta, Order, Retry, State, Tombstone,
    Tx,
};
use tidings::{DomainEvent, Outbox};

use crate::support::worlds::{Memory, Outcome, Real, World, of};

#[derive(Clone, Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPlaced {
    order_id: String,
    n: i32,
}

#[derive(Clone, Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "stock", id = "order_id")]
struct StockReserved {
    order_id: String,
    note: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "parcel", id = "order_id")]
struct ParcelSent {
    order_id: String,
}

fn placed(order_id: impl ToString, n: i32) -> Envelope {
    of(&OrderPlaced {
        order_id: order_id.to_string(),
        n,
    })
}

fn quick(attempts: u32) -> Retry {
    Retry::exponential(attempts, Duration::from_millis(1)..Duration::from_millis(5))
}

/// Lines that handlers record, in order.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    fn note(&self, line: impl Into<String>) {
        self.0
            .lock()
            .expect("the lock is not poisoned")
            .push(line.into());
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().expect("the lock is not poisoned").clone()
    }
}

/// Runs a scenario in both worlds and compares the lines of the handlers and the outcomes.
macro_rules! scenarios {
    ($($(#[$attribute:meta])* $name:ident)*) => {
        $(
            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let in_memory = scenario::$name(Memory::new().await).await;
                let real = scenario::$name(Real::new().await).await;
                assert_eq!(in_memory, real, "in memory, and on real services");
            }
        )*
    };
}

scenarios! {
    an_event_that_comes_twice_is_handled_twice_without_an_inbox
    an_event_that_comes_twice_is_handled_once_with_an_inbox
    events_that_wait_are_handled_in_batches_and_a_bad_one_costs_only_itself
    one_key_in_two_topics_is_handled_in_parallel
    a_returned_event_that_no_outbox_takes_is_a_dead_letter_and_leaves_no_effect
    one_of_two_members_of_a_group_gets_each_event
    events_go_on_through_topics_of_other_names_and_scheduled_ones_come_when_they_are_due
    retries_escalations_and_decisions_of_handlers_end_as_they_say
    tombstones_are_handled_in_order_and_skipped_without_a_handler
}

mod scenario {
    use super::*;

    type Ended = (Outcome, Vec<String>);

    /// Publishes two events, and both again after they have ended.
    async fn publish_twice(world: &mut impl World) {
        let events = [placed("a", 1), placed("a", 2)];
        world.publish(&events).await;
        world.settle(2).await;
        world.repeat(&events).await;
        world.settle(4).await;
    }

    pub(super) async fn an_event_that_comes_twice_is_handled_twice_without_an_inbox(
        mut world: impl World,
    ) -> Ended {
        async fn note(
            Event(order): Event<OrderPlaced>,
            State(seen): State<Seen>,
        ) -> Result<(), HandlerError> {
            seen.note(format!("{} {}", order.order_id, order.n));
            Ok(())
        }
        let seen = Seen::default();
        let subscriber = world
            .subscriber("inventory")
            .topic::<OrderPlaced>(world.topic("order"))
            .on(note)
            .state(seen.clone());
        world.add("inventory", subscriber).await;
        publish_twice(&mut world).await;
        (world.outcome().await, seen.lines())
    }

    pub(super) async fn an_event_that_comes_twice_is_handled_once_with_an_inbox(
        mut world: impl World,
    ) -> Ended {
        async fn note(
            Event(order): Event<OrderPlaced>,
            State(seen): State<Seen>,
            _: Tx,
        ) -> Result<StockReserved, HandlerError> {
            seen.note(format!("{} {}", order.order_id, order.n));
            Ok(StockReserved {
                order_id: order.order_id,
                note: String::new(),
            })
        }
        let seen = Seen::default();
        let subscriber = world
            .subscriber("inventory")
            .topic::<OrderPlaced>(world.topic("order"))
            .on(note)
            .state(seen.clone());
        let inbox = Inbox::new(world.pool().clone()).isolation(Isolation::RepeatableRead);
        world.add("inventory", subscriber.inbox(inbox)).await;
        publish_twice(&mut world).await;
        (world.outcome().await, seen.lines())
    }

    pub(super) async fn events_that_wait_are_handled_in_batches_and_a_bad_one_costs_only_itself(
        mut world: impl World,
    ) -> Ended {
        /// Counts the batches with several events and records the order of each aggregate.
        async fn note(
            orders: Batch<OrderPlaced>,
            mut tx: Tx,
            State((seen, several)): State<(Seen, Arc<AtomicUsize>)>,
        ) -> Result<(), HandlerError> {
            several.fetch_add(usize::from(orders.len() > 1), Ordering::SeqCst);
            if orders.iter().any(|order| order.n == 13) {
                return Err(HandlerError::dead_letter("thirteen"));
            }
            for order in orders.iter() {
                sqlx::query("select pg_sleep(0.001)")
                    .execute(&mut *tx)
                    .await?;
                seen.note(format!("{} {}", order.order_id, order.n));
            }
            Ok(())
        }
        let (seen, several) = (Seen::default(), Arc::<AtomicUsize>::default());
        let subscriber = world
            .subscriber("inventory")
            .topic::<OrderPlaced>(world.topic("order"))
            .on(note)
            .batch(32)
            .concurrency(1);
        let subscriber = subscriber
            .state((seen.clone(), several.clone()))
            .inbox(world.pool().clone());
        // All events are waiting when the subscriber starts.
        world
            .publish(&(0..96).map(|n| placed(n % 5, n)).collect::<Vec<_>>())
            .await;
        world.add("inventory", subscriber).await;
        world.settle(96).await;
        assert!(
            several.load(Ordering::SeqCst) > 1,
            "batches of several events"
        );
        let mut lines = seen.lines();
        // A stable sort keeps the events of one order in the order of their handling.
        lines.sort_by_key(|line| line.split(' ').next().map(str::to_owned));
        let mut outcome = world.outcome().await;
        // The number of failed attempts depends on which events wait together.
        outcome.counts.values_mut().for_each(|counts| counts[5] = 0);
        (outcome, lines)
    }

    pub(super) async fn one_key_in_two_topics_is_handled_in_parallel(
        mut world: impl World,
    ) -> Ended {
        /// Both handlers wait for each other, so they would wait forever if they ran one after the
        /// other.
        async fn meet<E: DomainEvent>(
            _: Event<E>,
            State(barrier): State<Arc<tokio::sync::Barrier>>,
        ) -> Result<(), HandlerError> {
            barrier.wait().await;
            Ok(())
        }
        let barrier = Arc::new(tokio::sync::Barrier::new(2));
        let subscriber = world
            .subscriber("inventory")
            .topic::<OrderPlaced>(world.topic("order"))
            .topic::<ParcelSent>(world.topic("parcel"));
        let subscriber = subscriber
            .on(meet::<OrderPlaced>)
            .on(meet::<ParcelSent>)
            .state(barrier);
        world.add("inventory", subscriber).await;
        world
            .publish(&[
                placed("a", 1),
                of(&ParcelSent {
                    order_id: "a".into(),
                }),
            ])
            .await;
        world.settle(2).await;
        (world.outcome().await, Vec::new())
    }

    pub(super) async fn a_returned_event_that_no_outbox_takes_is_a_dead_letter_and_leaves_no_effect(
        mut world: impl World,
    ) -> Ended {
        async fn large(
            Event(order): Event<OrderPlaced>,
            mut tx: Tx,
        ) -> Result<StockReserved, HandlerError> {
            sqlx::query("insert into effect values ($1)")
                .bind(order.n)
                .execute(&mut *tx)
                .await?;
            let bytes = if order.n == 1 { 5_000_000 } else { 10 };
            Ok(StockReserved {
                order_id: order.order_id,
                note: "x".repeat(bytes),
            })
        }
        sqlx::query("create table effect (n int)")
            .execute(world.pool())
            .await
            .expect("a new table");
        let subscriber = world
            .subscriber::<()>("inventory")
            .topic::<OrderPlaced>(world.topic("order"))
            .on(large);
        world
            .add("inventory", subscriber.inbox(world.pool().clone()))
            .await;
        world.publish(&[placed("a", 1), placed("a", 2)]).await;
        world.settle(2).await;
        let effects: Vec<i32> = sqlx::query_scalar("select n from effect")
            .fetch_all(world.pool())
            .await
            .expect("the query succeeds");
        (
            world.outcome().await,
            effects.iter().map(ToString::to_string).collect(),
        )
    }

    pub(super) async fn one_of_two_members_of_a_group_gets_each_event(
        mut world: impl World,
    ) -> Ended {
        async fn note(
            Event(order): Event<OrderPlaced>,
            State(seen): State<Seen>,
        ) -> Result<(), HandlerError> {
            seen.note(order.order_id);
            Ok(())
        }
        let seen = Seen::default();
        for _ in 0..2 {
            let subscriber = world
                .subscriber("inventory")
                .topic::<OrderPlaced>(world.topic("order"))
                .on(note)
                .state(seen.clone());
            world.add("inventory", subscriber).await;
        }
        world
            .publish(&(0..20).map(|order| placed(order, 1)).collect::<Vec<_>>())
            .await;
        world.settle(20).await;
        let mut lines = seen.lines();
        lines.sort_unstable();
        (world.outcome().await, lines)
    }

    pub(super) async fn events_go_on_through_topics_of_other_names_and_scheduled_ones_come_when_they_are_due(
        mut world: impl World,
    ) -> Ended {
        async fn reserve(
            Event(order): Event<OrderPlaced>,
            mut tx: Tx,
        ) -> Result<StockReserved, HandlerError> {
            let outbox = Outbox::new();
            let soon = Duration::from_millis(300);
            outbox
                .publish_after(
                    &mut tx,
                    &ParcelSent {
                        order_id: order.order_id.clone(),
                    },
                    soon,
                )
                .await?;
            let taken_back = outbox
                .publish_after(
                    &mut tx,
                    &ParcelSent {
                        order_id: "taken back".into(),
                    },
                    soon,
                )
                .await?;
            assert!(outbox.cancel(&mut tx, taken_back).await?);
            Ok(StockReserved {
                order_id: order.order_id,
                note: "now".into(),
            })
        }
        async fn note_stock(
            Event(stock): Event<StockReserved>,
            State(seen): State<Seen>,
        ) -> Result<(), HandlerError> {
            seen.note(format!("reserved {}", stock.order_id));
            Ok(())
        }
        async fn note_parcel(
            Event(parcel): Event<ParcelSent>,
            State(seen): State<Seen>,
        ) -> Result<(), HandlerError> {
            seen.note(format!("sent {}", parcel.order_id));
            Ok(())
        }
        let seen = Seen::default();
        let subscriber = world
            .subscriber::<()>("inventory")
            .topic::<OrderPlaced>(world.topic("order"))
            .on(reserve);
        world
            .add("inventory", subscriber.inbox(world.pool().clone()))
            .await;
        let subscriber = world
            .subscriber("shipping")
            .topic::<StockReserved>(world.topic("stock"))
            .topic::<ParcelSent>(world.topic("parcel"));
        world
            .add(
                "shipping",
                subscriber
                    .on(note_stock)
                    .on(note_parcel)
                    .state(seen.clone()),
            )
            .await;
        world.publish(&[placed("a", 1)]).await;
        world.settle(3).await;
        (world.outcome().await, seen.lines())
    }

    pub(super) async fn retries_escalations_and_decisions_of_handlers_end_as_they_say(
        mut world: impl World,
    ) -> Ended {
        async fn moody(
            Event(order): Event<OrderPlaced>,
            meta: Meta,
            State(seen): State<Seen>,
        ) -> Result<(), HandlerError> {
            seen.note(format!("{} {}", order.n, meta.attempt()));
            match (order.n, meta.attempt()) {
                (1, ..=2) => Err(HandlerError::retry("twice")),
                (2, _) => Err(HandlerError::retry("never")),
                (3, _) => Err(HandlerError::dead_letter("at once")),
                (4, _) => Err(HandlerError::skip("of no interest")),
                (5, _)
                    if seen
                        .lines()
                        .iter()
                        .filter(|line| line.starts_with("5 "))
                        .count()
                        < 3 =>
                {
                    Err(HandlerError::snooze(Duration::from_millis(10), "not yet"))
                }
                (6, 1) => panic!("the first time"),
                _ => Ok(()),
            }
        }
        let (seen, topics) = (
            Seen::default(),
            Escalation::retry_topics([Duration::from_millis(50), Duration::from_millis(100)]),
        );
        let subscriber = world
            .subscriber("moody")
            .topic::<OrderPlaced>(world.topic("order"))
            .on(moody)
            .state(seen.clone());
        world
            .add(
                "moody",
                subscriber
                    .retry(quick(2))
                    .escalation(topics)
                    .order(Order::None)
                    .kill_switch(None),
            )
            .await;
        world
            .publish(&(1..=7).map(|n| placed(n, n)).collect::<Vec<_>>())
            .await;
        world.settle(7).await;
        let mut lines = seen.lines();
        lines.sort_unstable();
        (world.outcome().await, lines)
    }

    pub(super) async fn tombstones_are_handled_in_order_and_skipped_without_a_handler(
        mut world: impl World,
    ) -> Ended {
        async fn note(
            Event(order): Event<OrderPlaced>,
            State(seen): State<Seen>,
        ) -> Result<(), HandlerError> {
            seen.note(format!("placed {}", order.n));
            Ok(())
        }
        async fn forget(
            erased: Tombstone<OrderPlaced>,
            State(seen): State<Seen>,
        ) -> Result<(), HandlerError> {
            seen.note(format!("erased {}", erased.aggregate_id()));
            Ok(())
        }
        async fn unaware(_: Event<OrderPlaced>) -> Result<(), HandlerError> {
            Ok(())
        }
        let seen = Seen::default();
        let subscriber = world
            .subscriber("archive")
            .topic::<OrderPlaced>(world.topic("order"));
        world
            .add(
                "archive",
                subscriber.on(note).on(forget).state(seen.clone()),
            )
            .await;
        world
            .add(
                "other",
                world
                    .subscriber::<()>("other")
                    .topic::<OrderPlaced>(world.topic("order"))
                    .on(unaware),
            )
            .await;
        let tombstone = Envelope::tombstone("order", AggregateId::new("a").expect("a valid id"));
        world
            .publish(&[placed("a", 1), tombstone, placed("a", 2)])
            .await;
        world.settle(6).await;
        (world.outcome().await, seen.lines())
    }
}
