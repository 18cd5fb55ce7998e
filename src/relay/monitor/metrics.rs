//! Metrics and named checks of a relay.

mod instruments;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{encoding::text::encode, metrics::gauge::Gauge, registry::Registry};

use self::instruments::{Delivery, OutcomeLabel, Session, SideLabel, Tables, TopicLabel};
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
pub struct RelayCheck {
    /// The check's name.
    pub name: &'static str,
    /// State of the check.
    pub state: CheckState,
}

/// Metrics and checks of a relay. Cheap to clone; shared between the relay and the admin server.
#[derive(Clone)]
pub struct RelayMetrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    board: Mutex<Board>,
    pulse: Pulse,
    delivery: Delivery,
    session: Session,
    tables: Tables,
    stalled: Gauge<f64, AtomicU64>,
}

impl RelayMetrics {
    /// Creates an observer. `stall_after` is the time without an acknowledgement after which
    /// delivery counts as stalled.
    pub(crate) fn new(stall_after: Duration) -> Self {
        let mut registry = Registry::with_prefix("tidings_relay");
        Self(Arc::new(Inner {
            delivery: Delivery::register(&mut registry),
            session: Session::register(&mut registry),
            tables: Tables::register(&mut registry),
            stalled: instruments::stalled(&mut registry),
            registry,
            board: Mutex::new(Board::new()),
            pulse: Pulse::new(stall_after),
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
    pub fn checks(&self) -> Vec<RelayCheck> {
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
            .delivery
            .published
            .get_or_create(&TopicLabel {
                topic: topic.to_owned(),
            })
            .inc_by(records);
    }

    pub(crate) fn reconnected(&self, side: &'static str) {
        self.0
            .delivery
            .reconnects
            .get_or_create(&SideLabel { side })
            .inc();
    }

    pub(crate) fn end_to_end(&self, latency: Duration) {
        self.0.delivery.latency.observe(latency.as_secs_f64());
    }

    pub(crate) fn batch(&self, events: u64) {
        self.0.delivery.batch.observe(events as f64);
    }

    pub(crate) fn lag(&self, lag: Duration) {
        self.0.session.lag_seconds.set(lag.as_secs_f64());
    }

    pub(crate) fn slot(&self, lag_bytes: i64, retained_bytes: i64) {
        self.0.session.lag_bytes.set(lag_bytes);
        self.0.session.slot_retained.set(retained_bytes);
    }

    pub(crate) fn in_flight(&self, records: u64) {
        self.0.session.in_flight.set(records.cast_signed());
    }

    pub(crate) fn undeliverable(&self, outcome: &'static str) {
        self.0
            .tables
            .undeliverable
            .get_or_create(&OutcomeLabel { outcome })
            .inc();
    }

    pub(crate) fn parked(&self, events: u64, aggregates: u64) {
        self.0.tables.parked_events.set(events.cast_signed());
        self.0
            .tables
            .parked_aggregates
            .set(aggregates.cast_signed());
    }

    pub(crate) fn deleted(&self, events: u64) {
        self.0.tables.deleted.inc_by(events);
    }

    pub(crate) fn oldest_event(&self, age: Duration) {
        self.0.tables.oldest_event.set(age.as_secs_f64());
    }

    pub(crate) fn scheduled_moved(&self, events: u64) {
        self.0.tables.scheduled_moved.inc_by(events);
    }

    pub(crate) fn scheduled_overdue(&self, by: Duration) {
        self.0.tables.scheduled_overdue.set(by.as_secs_f64());
    }

    pub(crate) fn leader(&self, leads: bool) {
        self.0.session.leader.set(i64::from(leads));
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
