//! The instruments of a relay: names, help texts and units of its metrics.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric, Registry, Unit},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TopicLabel {
    pub(super) topic: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabel {
    pub(super) outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SideLabel {
    pub(super) side: &'static str,
}

/// Metrics of delivery to Kafka.
pub(super) struct Delivery {
    pub(super) published: Family<TopicLabel, Counter>,
    pub(super) reconnects: Family<SideLabel, Counter>,
    pub(super) latency: Histogram,
    pub(super) batch: Histogram,
}

/// Metrics of the current session: its distance to the end of the log, and its role.
pub(super) struct Session {
    pub(super) lag_seconds: Gauge<f64, AtomicU64>,
    pub(super) lag_bytes: Gauge<i64, AtomicI64>,
    pub(super) slot_retained: Gauge<i64, AtomicI64>,
    pub(super) in_flight: Gauge<i64, AtomicI64>,
    pub(super) leader: Gauge<i64, AtomicI64>,
}

/// Metrics of the relay's tables: undeliverable and parked events, retention, scheduled events.
pub(super) struct Tables {
    pub(super) undeliverable: Family<OutcomeLabel, Counter>,
    pub(super) parked_events: Gauge<i64, AtomicI64>,
    pub(super) parked_aggregates: Gauge<i64, AtomicI64>,
    pub(super) deleted: Counter,
    pub(super) oldest_event: Gauge<f64, AtomicU64>,
    pub(super) scheduled_moved: Counter,
    pub(super) scheduled_overdue: Gauge<f64, AtomicU64>,
}

impl Delivery {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            published: registered(
                registry,
                "published",
                "Records that Kafka has acknowledged, by topic",
                Family::default(),
            ),
            reconnects: registered(
                registry,
                "reconnects",
                "Restarted sessions, by the side that interrupted them",
                Family::default(),
            ),
            latency: measured(
                registry,
                "end_to_end",
                "Time from commit (the server's clock) to acknowledgement (the relay's clock); \
                 sampled",
                Unit::Seconds,
                // 0.25 ms to 16 s: from a commit at the head of the log to the first seconds of an
                // outage.
                Histogram::new(exponential_buckets(0.000_25, 2.0, 17)),
            ),
            batch: registered(
                registry,
                "batch_events",
                "Events handled between two waits for input",
                Histogram::new(exponential_buckets(1.0, 4.0, 8)),
            ),
        }
    }
}

impl Session {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            lag_seconds: measured(
                registry,
                "lag",
                "Age of the last commit read when the server sent it, zero at the head",
                Unit::Seconds,
                Gauge::default(),
            ),
            lag_bytes: measured(
                registry,
                "lag",
                "Write-ahead log between the confirmed position and the server's end",
                Unit::Bytes,
                Gauge::default(),
            ),
            slot_retained: measured(
                registry,
                "slot_retained",
                "Write-ahead log that the server keeps for the slot",
                Unit::Bytes,
                Gauge::default(),
            ),
            in_flight: registered(
                registry,
                "in_flight_events",
                "Records sent and not yet acknowledged",
                Gauge::default(),
            ),
            leader: registered(
                registry,
                "leader",
                "1 if this process leads, 0 if it stands by",
                Gauge::default(),
            ),
        }
    }
}

impl Tables {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            undeliverable: registered(
                registry,
                "undeliverable",
                "Undeliverable events, by outcome",
                Family::default(),
            ),
            parked_events: registered(
                registry,
                "parked_events",
                "Events that wait for an operator's decision, as last observed by the leader",
                Gauge::default(),
            ),
            parked_aggregates: registered(
                registry,
                "parked_aggregates",
                "Aggregates with such events",
                Gauge::default(),
            ),
            deleted: registered(
                registry,
                "deleted_events",
                "Published events that retention has deleted from the outbox",
                Counter::default(),
            ),
            oldest_event: measured(
                registry,
                "oldest_event",
                "Age of the oldest row of the outbox, as last observed by retention",
                Unit::Seconds,
                Gauge::default(),
            ),
            scheduled_moved: registered(
                registry,
                "scheduled_moved",
                "Due scheduled events that this process has moved to the outbox",
                Counter::default(),
            ),
            scheduled_overdue: measured(
                registry,
                "scheduled_overdue",
                "Time since the first scheduled event became due, as last observed by the leader",
                Unit::Seconds,
                Gauge::default(),
            ),
        }
    }
}

/// Registers the gauge of a stalled delivery.
pub(super) fn stalled(registry: &mut Registry) -> Gauge<f64, AtomicU64> {
    measured(
        registry,
        "stalled",
        "Time since an acknowledgement or an empty backlog, once it exceeds stall_after; zero \
         before",
        Unit::Seconds,
        Gauge::default(),
    )
}

/// Registers a metric without a unit, and returns it.
fn registered<M: Metric + Clone>(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    metric: M,
) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// Registers a metric with a unit, and returns it.
fn measured<M: Metric + Clone>(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    unit: Unit,
    metric: M,
) -> M {
    registry.register_with_unit(name, help, unit, metric.clone());
    metric
}
