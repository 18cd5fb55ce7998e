//! What a relay shows of itself: metrics and named checks.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
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

/// How a named check stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckState {
    /// As it should be; the text says more, e.g. "leader, epoch 7".
    Ok(String),
    /// Not ready; the text says what happened and what to do.
    Failing(String),
}

/// One named readiness check: `database`, `kafka`, `lease`, `stream`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The check's name.
    pub name: &'static str,
    /// How it stands.
    pub state: CheckState,
}

/// The checks, in the order in which a relay starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Database,
    Lease,
    Kafka,
    Stream,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Lease => "lease",
            Self::Kafka => "kafka",
            Self::Stream => "stream",
        }
    }
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
    checks: Mutex<BTreeMap<Part, CheckState>>,
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
    pub(crate) fn new() -> Self {
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
        let checks =
            [Part::Database, Part::Lease, Part::Kafka, Part::Stream].map(|part| (part, CheckState::Failing("not tried yet".into())));
        let checks = Mutex::new(checks.into());
        Self(Arc::new(Inner {
            registry,
            checks,
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
        let mut text = String::new();
        encode(&mut text, &self.0.registry).expect("a string takes any text");
        text
    }

    /// Every readiness check as it stands now.
    pub fn checks(&self) -> Vec<Check> {
        let checks = self.0.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.iter().map(|(part, state)| Check { name: part.name(), state: state.clone() }).collect()
    }

    pub(crate) fn ok(&self, part: Part, text: impl Into<String>) {
        self.set(part, CheckState::Ok(text.into()));
    }

    pub(crate) fn failing(&self, part: Part, text: impl Into<String>) {
        self.set(part, CheckState::Failing(text.into()));
    }

    fn set(&self, part: Part, state: CheckState) {
        self.0.checks.lock().unwrap_or_else(PoisonError::into_inner).insert(part, state);
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
