//! Metrics, health check, and attempt spans of a subscriber.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus_client::{encoding::text::encode, registry::Registry};
use tidings::health::{Health, Status, SubscriberCheck};
use tidings::subscriber::{
    Event, HandlerError, KillSwitch, Retry, State, Statistics, SubscriberMetrics, SubscriberState,
};
use tidings::{Bus, kafka};
use tokio::sync::Semaphore;

use crate::support::place::{Changed, Place, create_effects, start, until};
use crate::support::services::migrated_database;

/// Returns a place whose members frequently query the ends of partitions.
async fn place() -> Place {
    let mut place = Place::new(1).await;
    let properties = [("statistics.interval.ms".to_owned(), "200".to_owned())];
    place.bus = Bus::new(kafka::Settings {
        brokers: place.brokers.clone(),
        properties: properties.into(),
    });
    place
}

/// Returns the metrics of this subscriber as text.
fn shown(statistics: &Statistics) -> String {
    scraped(|registry| {
        SubscriberMetrics::default()
            .subscriber(statistics)
            .register(registry)
    })
}

/// Returns the registered metrics as text.
pub(crate) fn scraped(register: impl FnOnce(&mut Registry)) -> String {
    let mut registry = Registry::default();
    register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).expect("a string accepts any text");
    text
}

async fn until_shown(statistics: &Statistics, group: &str, topic: &str, lines: &[&str]) {
    for line in lines {
        let line = line
            .replace("{", &format!("{{subscriber=\"{group}\","))
            .replace(",}", "}")
            .replace("TOPIC", topic);
        until(&format!("{line} in\n{}", shown(statistics)), async || {
            shown(statistics)
                .lines()
                .any(|shown| shown == line)
                .then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_show_what_became_of_events_by_type_and_how_far_each_partition_is() {
    async fn judge(
        Event(changed): Event<Changed>,
        State(turns): State<Arc<Semaphore>>,
    ) -> Result<(), HandlerError> {
        turns
            .acquire()
            .await
            .expect("the semaphore is open")
            .forget();
        match changed.version {
            1 => Err(HandlerError::skip("not of interest")),
            2 => Err(HandlerError::retry("never works")),
            _ => Ok(()),
        }
    }
    let (place, turns) = (place().await, Arc::new(Semaphore::new(0)));
    place.publish(3, 1..=3).await;
    place.send_raw("x", Some("{}"), &[]).await;
    place
        .send_raw(
            "x",
            Some("{}"),
            &[
                ("ce_specversion", "1.0"),
                ("ce_id", "1"),
                ("ce_type", "Foreign"),
                ("ce_source", "/x"),
            ],
        )
        .await;
    let subscriber = place
        .subscriber()
        .on(judge)
        .state(turns.clone())
        .retry(Retry::exponential(2, Duration::ZERO..Duration::ZERO));
    let running = start!(subscriber.kill_switch(None).buffer(5));
    let (statistics, group, topic) = (running.statistics.clone(), &place.group, &place.topic);
    let waiting = [
        "tidings_subscriber_running{} 3",
        "tidings_subscriber_lag{topic=\"TOPIC\",partition=\"0\"} 11",
        "tidings_subscriber_unfinished{topic=\"TOPIC\",partition=\"0\"} 5",
        "tidings_subscriber_state{state=\"running\"} 1",
    ];
    until_shown(&statistics, group, topic, &waiting).await;
    turns.add_permits(100);
    let done = [
        "tidings_subscriber_events_total{type=\"Changed\",outcome=\"handled\"} 3",
        "tidings_subscriber_events_total{type=\"Changed\",outcome=\"skipped\"} 3",
        "tidings_subscriber_events_total{type=\"Changed\",outcome=\"dead_lettered\"} 3",
        "tidings_subscriber_events_total{type=\"\",outcome=\"dead_lettered\"} 1",
        "tidings_subscriber_events_total{type=\"Foreign\",outcome=\"unknown\"} 1",
        "tidings_subscriber_failed_attempts_total{type=\"Changed\"} 6",
        "tidings_subscriber_attempt_seconds_count{type=\"Changed\"} 12",
        "tidings_subscriber_running{} 0",
        "tidings_subscriber_lag{topic=\"TOPIC\",partition=\"0\"} 0",
        "tidings_subscriber_unfinished{topic=\"TOPIC\",partition=\"0\"} 0",
        "tidings_subscriber_parked_aggregates{topic=\"TOPIC\",partition=\"0\"} 0",
    ];
    until_shown(&statistics, group, topic, &done).await;
    running.stop().await;
    let text = shown(&statistics);
    assert!(
        text.contains("state=\"stopped\"} 1") && !text.contains("partition="),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn aggregates_that_wait_are_counted_and_no_more_when_they_do_not() {
    async fn while_on(
        Event(changed): Event<Changed>,
        State(broken): State<Arc<AtomicBool>>,
    ) -> Result<(), HandlerError> {
        let fails = changed.account != "a0" && broken.load(Ordering::SeqCst);
        if fails {
            Err(HandlerError::retry("broken"))
        } else {
            Ok(())
        }
    }
    let (database, place, broken) = (
        migrated_database().await,
        place().await,
        Arc::new(AtomicBool::new(true)),
    );
    create_effects(&database.pool).await;
    place.publish(4, 1..=2).await;
    let pause = Duration::from_millis(50);
    let park = tidings::subscriber::Escalation::Park(Retry::exponential(1_000, pause..pause));
    let subscriber = place
        .subscriber()
        .on(while_on)
        .inbox(database.pool.clone())
        .state(broken.clone())
        .retry(Retry::never());
    let running = start!(subscriber.escalation(park));
    let waiting = |seen: &Statistics| {
        seen.partitions()
            .iter()
            .map(|partition| partition.parked_aggregates)
            .sum::<u64>()
    };
    running.until("three wait", |seen| waiting(seen) == 3).await;
    broken.store(false, Ordering::SeqCst);
    running.until("none waits", |seen| waiting(seen) == 0).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_subscriber_is_degraded_and_a_stopped_one_fails_its_check() {
    async fn while_on(
        Event(_): Event<Changed>,
        State(broken): State<Arc<AtomicBool>>,
    ) -> Result<(), HandlerError> {
        if broken.load(Ordering::SeqCst) {
            Err(HandlerError::retry("broken"))
        } else {
            Ok(())
        }
    }
    let (place, broken) = (Place::new(1).await, Arc::new(AtomicBool::new(true)));
    place.publish(20, 1..=1).await;
    let switch = KillSwitch::new(2, Duration::from_secs(60)).pause(Duration::from_millis(50));
    let subscriber = place
        .subscriber()
        .on(while_on)
        .state(broken.clone())
        .retry(Retry::never())
        .kill_switch(switch);
    let health = Health::new().check("inventory", SubscriberCheck::new(&subscriber.statistics()));
    let status = async || health.report().await.checks.remove(0).status;
    assert_eq!(status().await, Status::Degraded("starting".into()));
    let running = start!(subscriber);
    running
        .until("it pauses", |seen| {
            seen.state() == SubscriberState::PausedByKillSwitch
        })
        .await;
    assert!(matches!(status().await, Status::Degraded(text) if text.contains("kill switch")));
    assert!(health.report().await.is_ready());
    broken.store(false, Ordering::SeqCst);
    until("it runs", async || {
        matches!(status().await, Status::Ok(text) if text == "running, partitions: 1").then_some(())
    })
    .await;
    running.stop().await;
    assert!(matches!(status().await, Status::Failing(text) if text.starts_with("stopped")));
}
