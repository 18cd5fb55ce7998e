//! Panics in handlers, their arguments and layers, and in clones and drops of these.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidings::Subscriber;
use tidings::subscriber::{Delivery, Event, FromDelivery, HandlerError, Retry, SubscriberState};
use tower::util::MapRequestLayer;

use crate::support::place::{Changed, Place, start};

/// Panics if it is armed, and disarms itself in doing so.
#[derive(Clone, Debug)]
struct Bomb(Arc<AtomicBool>);

impl Bomb {
    fn armed() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }
    fn touch(&self) {
        assert!(!self.0.swap(false, Ordering::SeqCst), "boom");
    }
}

/// A value that panics when it is cloned.
struct Explosive(Bomb, Arc<AtomicBool>);

impl Clone for Explosive {
    fn clone(&self) -> Self {
        // Not while the subscriber is assembled.
        if self.1.load(Ordering::SeqCst) {
            self.0.touch();
        }
        Self(self.0.clone(), self.1.clone())
    }
}

/// A value that panics when it is dropped.
struct Fragile(Bomb);

impl Drop for Fragile {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.0.touch();
        }
    }
}

/// An argument that panics when it is extracted.
struct Extracted;

impl FromDelivery<Bomb> for Extracted {
    type Rejection = Infallible;

    async fn from_delivery(_: &Delivery, bomb: &Bomb) -> Result<Self, Infallible> {
        bomb.touch();
        Ok(Self)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_costs_one_attempt_wherever_it_happens_and_no_partition() {
    async fn fine(_: Event<Changed>) -> Result<(), HandlerError> {
        Ok(())
    }
    async fn extracts(_: Event<Changed>, _: Extracted) -> Result<(), HandlerError> {
        Ok(())
    }
    let place = Place::new(1).await;
    let group = |name: &str| format!("{}-{name}", place.group);
    fn of<S: Send + Sync + 'static>(place: &Place, group: String) -> Subscriber<S> {
        place
            .bus
            .subscriber(group)
            .topic::<Changed>(&place.topic)
            .retry(Retry::exponential(2, Duration::ZERO..Duration::ZERO))
    }
    let (bombs, ready): ([Bomb; 6], _) = (
        std::array::from_fn(|_| Bomb::armed()),
        Arc::<AtomicBool>::default(),
    );
    let [at_once, later, dropped, handler, layer, call] = bombs;
    let (explosive, layered) = (
        Explosive(handler, ready.clone()),
        Explosive(layer, ready.clone()),
    );
    let running = [
        start!(
            of(&place, group("extractor"))
                .on(extracts)
                .state(Bomb::armed())
        ),
        start!(
            of::<()>(&place, group("at-once")).on(move |_: Event<Changed>| {
                let bomb = at_once.clone();
                async move {
                    bomb.touch();
                    Ok::<_, HandlerError>(())
                }
            })
        ),
        start!(
            of::<()>(&place, group("later")).on(move |_: Event<Changed>| {
                let bomb = later.clone();
                async move {
                    tokio::task::yield_now().await;
                    bomb.touch();
                    Ok::<_, HandlerError>(())
                }
            })
        ),
        start!(
            of::<()>(&place, group("dropped")).on(move |_: Event<Changed>| {
                let fragile = Fragile(dropped.clone());
                async move {
                    tokio::task::yield_now().await;
                    drop(fragile);
                    Ok::<_, HandlerError>(())
                }
            })
        ),
        start!(
            of::<()>(&place, group("clone")).on(move |_: Event<Changed>| {
                let _ = &explosive;
                async { Ok::<_, HandlerError>(()) }
            })
        ),
        start!(
            of::<()>(&place, group("layer"))
                .on(fine)
                .layer(MapRequestLayer::new(move |delivery: Delivery| {
                    let _ = &layered;
                    delivery
                }))
        ),
        start!(
            of::<()>(&place, group("call"))
                .on(fine)
                .layer(MapRequestLayer::new(move |delivery: Delivery| {
                    call.touch();
                    delivery
                }))
        ),
    ];
    for running in &running {
        running
            .until("the subscriber is assembled", |seen| {
                seen.state() == SubscriberState::Running
            })
            .await;
    }
    ready.store(true, Ordering::SeqCst);
    place.publish(3, 1..=1).await;
    for running in running {
        running
            .until("all are handled", |seen| seen.handled() == 3)
            .await;
        assert!(
            running.statistics.failed_attempts() <= 1 && running.statistics.dead_lettered() == 0,
            "{}",
            running.statistics.name()
        );
        running.stop().await;
    }
}
