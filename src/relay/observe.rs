//! What a relay shows of itself: metrics and named checks.

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

pub(crate) use super::readiness::Part;

/// How a named check stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckState {
    /// As it should be; the text says more, e.g. "leader, epoch 7".
    Ok(String),
    /// Not ready; the text says what happened and what to do.
    Failing(String),
}

/// One named readiness check: `database`, `lease`, `kafka`, `stream`, `progress`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The check's name.
    pub name: &'static str,
    /// How it stands.
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

/// What a relay shows of itself; cheap to clone, shared between the relay and the admin server.
#[derive(Clone)]
pub struct Observer(Arc<Inner>);

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

impl Observer {
    /// `stall_after` is the time without an acknowledgement after which delivery counts as stalled.
    pub(crate) fn new(stall_after: Duration) -> Self {
        let mut registry = Registry::with_prefix("tidings_relay");
        let published = Family::<TopicLabel, Counter>::default();
        registry.register("published", "Records that Kafka has acknowledged, by topic", published.clone());
        let reconnects = Family::<SideLabel, Counter>::default();
        registry.register("reconnects", "Times a session was started again, by the side that interrupted it", reconnects.clone());
        // 0.25 ms to 16 s: from a commit at the head of the log to a long outage's first minutes.
        let latency = Histogram::new(exponential_buckets(0.000_25, 2.0, 17));
        registry.register_with_unit(
            "end_to_end",
            "Commit (the server's clock) to acknowledgement (this clock); sampled",
            Unit::Seconds,
            latency.clone(),
        );
        let batch = Histogram::new(exponential_buckets(1.0, 4.0, 8));
        registry.register("batch_events", "Events handled between two waits for input", batch.clone());
        let lag_seconds = Gauge::default();
        registry.register_with_unit(
            "lag",
            "Age of the last commit read when it was sent, zero at the head",
            Unit::Seconds,
            lag_seconds.clone(),
        );
        let lag_bytes = Gauge::default();
        registry.register_with_unit(
            "lag",
            "Write-ahead log between what is confirmed and the server's end",
            Unit::Bytes,
            lag_bytes.clone(),
        );
        let slot_retained = Gauge::default();
        registry.register_with_unit("slot_retained", "Write-ahead log the server keeps for the slot", Unit::Bytes, slot_retained.clone());
        let in_flight = Gauge::default();
        registry.register("in_flight_events", "Records sent and not yet acknowledged", in_flight.clone());
        let leader = Gauge::default();
        registry.register("leader", "1 if this process leads, 0 if it stands by", leader.clone());
        let undeliverable = Family::<OutcomeLabel, Counter>::default();
        registry.register("undeliverable", "Events found to be undeliverable, by what became of them", undeliverable.clone());
        let parked_events = Gauge::default();
        registry.register("parked_events", "Events that wait for somebody's decision, as far as the leader knows", parked_events.clone());
        let parked_aggregates = Gauge::default();
        registry.register("parked_aggregates", "Aggregates these are of", parked_aggregates.clone());
        let deleted = Counter::default();
        registry.register("deleted_events", "Published events that retention has deleted from the outbox", deleted.clone());
        let oldest_event = Gauge::default();
        registry.register_with_unit(
            "oldest_event",
            "Age of the oldest row of the outbox, as retention saw it",
            Unit::Seconds,
            oldest_event.clone(),
        );
        let scheduled_moved = Counter::default();
        registry.register("scheduled_moved", "Scheduled events that this relay has moved to the outbox when due", scheduled_moved.clone());
        let scheduled_overdue = Gauge::default();
        registry.register_with_unit(
            "scheduled_overdue",
            "For how long the first scheduled event has been due, as the leader saw it last",
            Unit::Seconds,
            scheduled_overdue.clone(),
        );
        let stalled = Gauge::default();
        registry.register_with_unit(
            "stalled",
            "Time since something was acknowledged or nothing was pending, once it exceeds stall_after; zero before",
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

    /// The metrics in OpenMetrics text format, which Prometheus reads.
    pub fn metrics_text(&self) -> String {
        self.0.stalled.set(self.0.pulse.stall().map_or(0.0, |stall| stall.lasted.as_secs_f64()));
        let mut text = String::new();
        encode(&mut text, &self.0.registry).expect("a string takes any text");
        text
    }

    /// Every readiness check as it stands now. Computed from all standing reasons at each call.
    pub fn checks(&self) -> Vec<Check> {
        let stalled = self.0.pulse.stall().map(|stall| stall.text);
        self.board().checks(stalled)
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signs of life of the sessions.
    pub(super) fn pulse(&self) -> &Pulse {
        &self.0.pulse
    }

    /// Sets what a check shows while no reason stands against it. Clears no reason.
    pub(crate) fn note(&self, part: Part, text: impl Into<String>) {
        self.board().note(part, text.into());
    }

    /// Raises a reason, which stands until its owner clears it.
    pub(crate) fn raise(&self, part: Part, cause: Cause, text: impl Into<String>) {
        self.board().raise(part, cause, text.into());
    }

    /// Clears the reason of this owner.
    pub(crate) fn clear(&self, part: Part, cause: Cause) {
        self.board().clear(part, cause);
    }

    /// Raises a reason that stands until the returned value is dropped.
    pub(crate) fn hold(&self, part: Part, text: impl Into<String>) -> Reason {
        let mut board = self.board();
        let cause = board.next_held();
        board.raise(part, cause, text.into());
        Reason { observer: self.clone(), part, cause }
    }

    /// A session was interrupted: the reason stands until a later session delivers, or has nothing to deliver.
    pub(crate) fn interrupted(&self, part: Part, text: impl Into<String>) {
        let mut board = self.board();
        board.clear_everywhere(Cause::Interrupted);
        board.raise(part, Cause::Interrupted, text.into());
    }

    /// Something was acknowledged, or nothing is pending.
    pub(crate) fn well(&self) {
        self.0.pulse.well();
        self.board().clear_everywhere(Cause::Interrupted);
    }

    /// No relay of this name leads, this one included.
    pub(crate) fn waits_for_the_lock(&self) {
        self.0.pulse.leads();
        self.leader(false);
    }

    /// Another relay of this name leads.
    pub(crate) fn stands_by(&self) {
        self.0.pulse.stands_by();
        self.leader(false);
        let mut board = self.board();
        for cause in [Cause::Interrupted, Cause::Cluster, Cause::LockHolder] {
            board.clear_everywhere(cause);
        }
        board.note(Part::Lease, "standing by: another relay of this name leads".into());
        board.note(Part::Stream, "standing by".into());
        board.note(Part::Kafka, "standing by".into());
    }

    pub(crate) fn published(&self, topic: &str, records: u64) {
        self.0.published.get_or_create(&TopicLabel { topic: topic.to_owned() }).inc_by(records);
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
        self.0.undeliverable.get_or_create(&OutcomeLabel { outcome }).inc();
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

/// A reason against the readiness of a relay. It stands until this is dropped.
#[must_use = "the reason is cleared when this is dropped"]
pub(crate) struct Reason {
    observer: Observer,
    part: Part,
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
        let observer = Observer::new(Duration::from_secs(60));
        let kafka = || observer.checks().into_iter().find(|check| check.name == "kafka").map(|check| check.state);
        observer.note(Part::Kafka, "connected");
        let reason = observer.hold(Part::Kafka, "topic `a` does not exist");
        reason.set("topic `a` may not be used");
        observer.note(Part::Kafka, "connected");
        assert_eq!(kafka(), Some(CheckState::Failing("topic `a` may not be used".into())));
        drop(reason);
        assert_eq!(kafka(), Some(CheckState::Ok("connected".into())));
    }

    #[test]
    fn an_interruption_stands_until_delivery_is_well() {
        let observer = Observer::new(Duration::from_secs(60));
        let failing = || observer.checks().into_iter().filter(|check| matches!(check.state, CheckState::Failing(_))).count();
        Part::ALL.into_iter().for_each(|part| observer.note(part, "fine"));
        assert_eq!(failing(), 0);
        observer.interrupted(Part::Kafka, "fenced");
        observer.interrupted(Part::Stream, "connection reset");
        observer.note(Part::Stream, "streaming");
        assert_eq!(failing(), 1, "the last interruption alone stands");
        observer.well();
        assert_eq!(failing(), 0);
    }

    /// The metric does not depend on a session that reports it.
    #[test]
    fn a_stall_is_shown_as_a_metric_and_as_a_failing_check() {
        let observer = Observer::new(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(20));
        let metrics = observer.metrics_text();
        let line = metrics.lines().find(|line| line.starts_with("tidings_relay_stalled_seconds ")).expect("the metric");
        assert!(line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).is_some_and(|value| value > 0.0), "{line}");
        assert!(observer.checks().iter().any(|check| check.name == "progress" && matches!(check.state, CheckState::Failing(_))));
        observer.stands_by();
        assert!(observer.metrics_text().contains("tidings_relay_stalled_seconds 0.0"));
    }
}
