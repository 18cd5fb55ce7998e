//! Metrics and named checks of a relay.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use super::{
    pulse::Pulse,
    readiness::{Board, Cause},
};

pub(crate) use super::readiness::Component;

/// State of a named check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckState {
    /// The check holds. The text has details, for example "leader, epoch 7".
    Ok(String),
    /// The relay is not ready. The text names the cause and the remedy.
    Failing(String),
}

/// One named readiness check: `database`, `lease`, `kafka`, `stream`, `progress`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The check's name.
    pub name: &'static str,
    /// State of the check.
    pub state: CheckState,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TopicLabel {
    topic: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SideLabel {
    side: &'static str,
}

/// Metrics and checks of a relay. Cheap to clone; shared between the relay and the admin server.
#[derive(Clone)]
pub struct RelayMetrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    board: Mutex<Board>,
    pulse: Pulse,
    stalled: Gauge<f64, AtomicU64>,
    published: Family<TopicLabel, Counter>,
    reconnects: Family<SideLabel, Counter>,
    latency: Histogram,
    batch: Histogram,
    lag_seconds: Gauge<f64, AtomicU64>,
    lag_bytes: Gauge<i64, AtomicI64>,
    slot_retained: Gauge<i64, AtomicI64>,
    in_flight: Gauge<i64, AtomicI64>,
    leader: Gauge<i64, AtomicI64>,
    undeliverable: Family<OutcomeLabel, Counter>,
    parked_events: Gauge<i64, AtomicI64>,
    parked_aggregates: Gauge<i64, AtomicI64>,
    deleted: Counter,
    oldest_event: Gauge<f64, AtomicU64>,
    scheduled_moved: Counter,
    scheduled_overdue: Gauge<f64, AtomicU64>,
}

impl RelayMetrics {
    /// Creates an observer. `stall_after` is the time without an acknowledgement after which
    /// delivery counts as stalled.
    pub(crate) fn new(stall_after: Duration) -> Self {
        let mut registry = Registry::with_prefix("tidings_relay");
        let published = Family::<TopicLabel, Counter>::default();
        registry.register(
            "published",
            "Records that Kafka has acknowledged, by topic",
            published.clone(),
        );
        let reconnects = Family::<SideLabel, Counter>::default();
        registry.register(
            "reconnects",
            "Restarted sessions, by the side that interrupted them",
            reconnects.clone(),
        );
        // 0.25 ms to 16 s: from a commit at the head of the log to the first seconds of an outage.
        let latency = Histogram::new(exponential_buckets(0.000_25, 2.0, 17));
        registry.register_with_unit(
            "end_to_end",
            "Time from commit (the server's clock) to acknowledgement (the relay's clock); sampled",
            Unit::Seconds,
            latency.clone(),
        );
        let batch = Histogram::new(exponential_buckets(1.0, 4.0, 8));
        registry.register(
            "batch_events",
            "Events handled between two waits for input",
            batch.clone(),
        );
        let lag_seconds = Gauge::default();
        registry.register_with_unit(
            "lag",
            "Age of the last commit read when the server sent it, zero at the head",
            Unit::Seconds,
            lag_seconds.clone(),
        );
        let lag_bytes = Gauge::default();
        registry.register_with_unit(
            "lag",
            "Write-ahead log between the confirmed position and the server's end",
            Unit::Bytes,
            lag_bytes.clone(),
        );
        let slot_retained = Gauge::default();
        registry.register_with_unit(
            "slot_retained",
            "Write-ahead log that the server keeps for the slot",
            Unit::Bytes,
            slot_retained.clone(),
        );
        let in_flight = Gauge::default();
        registry.register(
            "in_flight_events",
            "Records sent and not yet acknowledged",
            in_flight.clone(),
        );
        let leader = Gauge::default();
        registry.register(
            "leader",
            "1 if this process leads, 0 if it stands by",
            leader.clone(),
        );
        let undeliverable = Family::<OutcomeLabel, Counter>::default();
        registry.register(
            "undeliverable",
            "Undeliverable events, by outcome",
            undeliverable.clone(),
        );
        let parked_events = Gauge::default();
        registry.register(
            "parked_events",
            "Events that wait for an operator's decision, as last observed by the leader",
            parked_events.clone(),
        );
        let parked_aggregates = Gauge::default();
        registry.register(
            "parked_aggregates",
            "Aggregates with such events",
            parked_aggregates.clone(),
        );
        let deleted = Counter::default();
        registry.register(
            "deleted_events",
            "Published events that retention has deleted from the outbox",
            deleted.clone(),
        );
        let oldest_event = Gauge::default();
        registry.register_with_unit(
            "oldest_event",
            "Age of the oldest row of the outbox, as last observed by retention",
            Unit::Seconds,
            oldest_event.clone(),
        );
        let scheduled_moved = Counter::default();
        registry.register(
            "scheduled_moved",
            "Due scheduled events that this process has moved to the outbox",
            scheduled_moved.clone(),
        );
        let scheduled_overdue = Gauge::default();
        registry.register_with_unit(
            "scheduled_overdue",
            "Time since the first scheduled event became due, as last observed by the leader",
            Unit::Seconds,
            scheduled_overdue.clone(),
        );
        let stalled = Gauge::default();
        registry.register_with_unit(
            "stalled",
            "Time since an acknowledgement or an empty backlog, once it exceeds stall_after; zero \
             before",
            Unit::Seconds,
            stalled.clone(),
        );
        Self(Arc::new(Inner {
            registry,
            board: Mutex::new(Board::new()),
            pulse: Pulse::new(stall_after),
            stalled,
            published,
            reconnects,
            latency,
            batch,
            lag_seconds,
            lag_bytes,
            slot_retained,
            in_flight,
            leader,
            undeliverable,
            parked_events,
            parked_aggregates,
            deleted,
            oldest_event,
            scheduled_moved,
            scheduled_overdue,
        }))
    }

    /// Returns the metrics in OpenMetrics text format, which Prometheus reads.
    pub fn metrics_text(&self) -> String {
        self.0.stalled.set(
            self.0
                .pulse
                .stall()
                .map_or(0.0, |stall| stall.lasted.as_secs_f64()),
        );
        let mut text = String::new();
        encode(&mut text, &self.0.registry).expect("a string takes any text");
        text
    }

    /// Returns the state of every readiness check. Computed from all standing reasons at each call.
    pub fn checks(&self) -> Vec<Check> {
        let stalled = self.0.pulse.stall().map(|stall| stall.text);
        self.board().checks(stalled)
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the signs of life of the sessions.
    pub(crate) fn pulse(&self) -> &Pulse {
        &self.0.pulse
    }

    /// Sets the text of a check that holds. Clears no reason.
    pub(crate) fn note(&self, part: Component, text: impl Into<String>) {
        self.board().note(part, text.into());
    }

    /// Raises a reason, which stands until its owner clears it.
    pub(crate) fn raise(&self, part: Component, cause: Cause, text: impl Into<String>) {
        self.board().raise(part, cause, text.into());
    }

    /// Clears the reason of this owner.
    pub(crate) fn clear(&self, part: Component, cause: Cause) {
        self.board().clear(part, cause);
    }

    /// Raises a reason that stands until the returned value is dropped.
    pub(crate) fn hold(&self, part: Component, text: impl Into<String>) -> Reason {
        let mut board = self.board();
        let cause = board.next_held();
        board.raise(part, cause, text.into());
        Reason {
            observer: self.clone(),
            part,
            cause,
        }
    }

    /// Records that a session was interrupted. The reason stands until a later session delivers an
    /// event or has nothing to deliver.
    pub(crate) fn interrupted(&self, part: Component, text: impl Into<String>) {
        let mut board = self.board();
        board.clear_everywhere(Cause::Interrupted);
        board.raise(part, Cause::Interrupted, text.into());
    }

    /// Records that an event was acknowledged, or that nothing is pending.
    pub(crate) fn well(&self) {
        self.0.pulse.well();
        self.board().clear_everywhere(Cause::Interrupted);
    }

    /// Records that no relay of this name leads, including this one.
    pub(crate) fn waits_for_the_lock(&self) {
        self.0.pulse.leads();
        self.leader(false);
    }

    /// Records that another relay of this name leads.
    pub(crate) fn stands_by(&self) {
        self.0.pulse.stands_by();
        self.leader(false);
        let mut board = self.board();
        for cause in [Cause::Interrupted, Cause::Cluster, Cause::LockHolder] {
            board.clear_everywhere(cause);
        }
        board.note(
            Component::Lease,
            "standing by: another relay of this name leads".into(),
        );
        board.note(Component::Stream, "standing by".into());
        board.note(Component::Kafka, "standing by".into());
    }

    pub(crate) fn published(&self, topic: &str, records: u64) {
        self.0
            .published
            .get_or_create(&TopicLabel {
                topic: topic.to_owned(),
            })
            .inc_by(records);
    }

    pub(crate) fn reconnected(&self, side: &'static str) {
        self.0.reconnects.get_or_create(&SideLabel { side }).inc();
    }

    pub(crate) fn end_to_end(&self, latency: Duration) {
        self.0.latency.observe(latency.as_secs_f64());
    }

    pub(crate) fn batch(&self, events: u64) {
        self.0.batch.observe(events as f64);
    }

    pub(crate) fn lag(&self, lag: Duration) {
        self.0.lag_seconds.set(lag.as_secs_f64());
    }

    pub(crate) fn slot(&self, lag_bytes: i64, retained_bytes: i64) {
        self.0.lag_bytes.set(lag_bytes);
        self.0.slot_retained.set(retained_bytes);
    }

    pub(crate) fn in_flight(&self, records: u64) {
        self.0.in_flight.set(records.cast_signed());
    }

    pub(crate) fn undeliverable(&self, outcome: &'static str) {
        self.0
            .undeliverable
            .get_or_create(&OutcomeLabel { outcome })
            .inc();
    }

    pub(crate) fn parked(&self, events: u64, aggregates: u64) {
        self.0.parked_events.set(events.cast_signed());
        self.0.parked_aggregates.set(aggregates.cast_signed());
    }

    pub(crate) fn deleted(&self, events: u64) {
        self.0.deleted.inc_by(events);
    }

    pub(crate) fn oldest_event(&self, age: Duration) {
        self.0.oldest_event.set(age.as_secs_f64());
    }

    pub(crate) fn scheduled_moved(&self, events: u64) {
        self.0.scheduled_moved.inc_by(events);
    }

    pub(crate) fn scheduled_overdue(&self, by: Duration) {
        self.0.scheduled_overdue.set(by.as_secs_f64());
    }

    pub(crate) fn leader(&self, leads: bool) {
        self.0.leader.set(i64::from(leads));
    }
}

/// A reason against the readiness of a relay. It stands until this value is dropped.
#[must_use = "the reason is cleared when this is dropped"]
pub(crate) struct Reason {
    observer: RelayMetrics,
    part: Component,
    cause: Cause,
}

impl Reason {
    /// Replaces the text of the reason.
    pub(crate) fn set(&self, text: impl Into<String>) {
        self.observer.raise(self.part, self.cause, text);
    }
}

impl Drop for Reason {
    fn drop(&mut self) {
        self.observer.clear(self.part, self.cause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_reason_stands_until_it_is_dropped() {
        let observer = RelayMetrics::new(Duration::from_secs(60));
        let kafka = || {
            observer
                .checks()
                .into_iter()
                .find(|check| check.name == "kafka")
                .map(|check| check.state)
        };
        observer.note(Component::Kafka, "connected");
        let reason = observer.hold(Component::Kafka, "topic `a` does not exist");
        reason.set("topic `a` may not be used");
        observer.note(Component::Kafka, "connected");
        assert_eq!(
            kafka(),
            Some(CheckState::Failing("topic `a` may not be used".into()))
        );
        drop(reason);
        assert_eq!(kafka(), Some(CheckState::Ok("connected".into())));
    }

    #[test]
    fn an_interruption_stands_until_delivery_is_well() {
        let observer = RelayMetrics::new(Duration::from_secs(60));
        let failing = || {
            observer
                .checks()
                .into_iter()
                .filter(|check| matches!(check.state, CheckState::Failing(_)))
                .count()
        };
        Component::ALL
            .into_iter()
            .for_each(|part| observer.note(part, "fine"));
        assert_eq!(failing(), 0);
        observer.interrupted(Component::Kafka, "fenced");
        observer.interrupted(Component::Stream, "connection reset");
        observer.note(Component::Stream, "streaming");
        assert_eq!(failing(), 1, "the last interruption alone stands");
        observer.well();
        assert_eq!(failing(), 0);
    }

    /// The metric does not depend on a session that reports it.
    #[test]
    fn a_stall_is_shown_as_a_metric_and_as_a_failing_check() {
        let observer = RelayMetrics::new(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(20));
        let metrics = observer.metrics_text();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("tidings_relay_stalled_seconds "))
            .expect("the metric");
        assert!(
            line.rsplit(' ')
                .next()
                .and_then(|value| value.parse::<f64>().ok())
                .is_some_and(|value| value > 0.0),
            "{line}"
        );
        assert!(
            observer
                .checks()
                .iter()
                .any(|check| check.name == "progress"
                    && matches!(check.state, CheckState::Failing(_)))
        );
        observer.stands_by();
        assert!(
            observer
                .metrics_text()
                .contains("tidings_relay_stalled_seconds 0.0")
        );
    }
}
