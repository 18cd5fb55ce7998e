//! Metrics of sagas for a `prometheus-client` registry.

use std::fmt;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::SagaStatus;
use super::statistics::{SagaStanding, SagaStatistics, StepCounters};

/// Metrics of the added sagas, read at each scrape.
///
/// | metric | type | meaning |
/// |---|---|---|
/// | `tidings_saga_begun_total{saga}` | counter | sagas that began, after they got their locks |
/// | `tidings_saga_ended_total{saga, outcome}` | counter | `completed`, `compensated`, `failed` |
/// | `tidings_saga_step_seconds{saga, step, direction}` | histogram | duration of a step (1) |
/// | `tidings_saga_retries_total{saga, step, direction}` | counter | attempts after the first |
/// | `tidings_saga_timeouts_total{saga, step, direction}` | counter | attempts that timed out |
/// | `tidings_saga_current{saga, status}` | gauge | open and failed sagas in the database (2) |
/// | `tidings_saga_blocked{saga}` | gauge | sagas that the running code cannot continue (3) |
/// | `tidings_saga_idle_seconds_max{saga}` | gauge | longest time since the last transition (4) |
/// | `tidings_saga_overdue_seconds_max{saga}` | gauge | longest time since a saga became due |
/// | `tidings_saga_timers_waiting_seconds{saga}` | gauge | wait of due timers for replies (5) |
///
/// 1. From the start of the step until it is done (`forward`) or undone (`backward`), including all
///    attempts.
/// 2. By status: `waiting`, `running`, `compensating`, `failed`.
/// 3. The running code lacks their step or cannot read their state.
/// 4. Failed sagas are excluded.
/// 5. Time for which due timers of this process have waited for replies that may be in Kafka. Zero
///    if they do not wait.
///
/// All other gauges describe the database. They are the same in every replica and at most 15 s
/// old.
///
/// # Examples
///
/// ```
/// use prometheus_client::{encoding::text::encode, registry::Registry};
/// use tidings::saga::{Saga, SagaMetrics};
///
/// let saga = Saga::<()>::new("place-order");
/// let mut registry = Registry::default();
/// SagaMetrics::default().saga(&saga.statistics()).register(&mut registry);
///
/// let mut text = String::new();
/// encode(&mut text, &registry).unwrap();
/// assert!(text.contains(r#"tidings_saga_ended_total{saga="place-order",outcome="completed"} 0"#));
/// ```
#[derive(Debug, Default)]
pub struct SagaMetrics(Vec<SagaStatistics>);

/// Labels for the two entries per step of [`SagaStatistics::steps`].
const DIRECTIONS: [&str; 2] = ["forward", "backward"];

type OfStanding = (&'static str, fn(&SagaStanding) -> u64);

const STATUSES: [OfStanding; 4] = [
    ("waiting", |standing| standing.waiting),
    ("running", |standing| standing.running),
    ("compensating", |standing| standing.compensating),
    ("failed", |standing| standing.failed),
];

impl SagaMetrics {
    /// Adds this saga.
    #[must_use]
    pub fn saga(mut self, statistics: &SagaStatistics) -> Self {
        self.0.push(statistics.clone());
        self
    }

    /// Registers the metrics. Call it once per registry, because all metrics of one name must
    /// belong to the same collector.
    pub fn register(self, registry: &mut Registry) {
        registry.register_collector(Box::new(self));
    }

    fn encode_ends(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "tidings_saga_begun",
            "Sagas that began",
            None,
            MetricType::Counter,
        )?;
        for statistics in &self.0 {
            ConstCounter::new(statistics.begun())
                .encode(metric.encode_family(&[("saga", statistics.name())])?)?;
        }
        let mut metric = encoder.encode_descriptor(
            "tidings_saga_ended",
            "Ended sagas by outcome",
            None,
            MetricType::Counter,
        )?;
        for statistics in &self.0 {
            for outcome in [
                SagaStatus::Completed,
                SagaStatus::Compensated,
                SagaStatus::Failed,
            ] {
                let labels = [("saga", statistics.name()), ("outcome", outcome.word())];
                ConstCounter::new(statistics.ended(outcome))
                    .encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn encode_steps(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Duration of a step until it is done or undone";
        let mut metric = encoder.encode_descriptor(
            "tidings_saga_step",
            help,
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (labels, counters) in self.each_step() {
            let (sum, buckets) = counters.times.read();
            let count = buckets.iter().map(|(_, count)| count).sum();
            metric
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        let mut metric = encoder.encode_descriptor(
            "tidings_saga_retries",
            "Attempts after the first",
            None,
            MetricType::Counter,
        )?;
        for (labels, counters) in self.each_step() {
            ConstCounter::new(counters.retries.load(Ordering::Relaxed))
                .encode(metric.encode_family(&labels)?)?;
        }
        let help = "Attempts that timed out";
        let mut metric =
            encoder.encode_descriptor("tidings_saga_timeouts", help, None, MetricType::Counter)?;
        for (labels, counters) in self.each_step() {
            ConstCounter::new(counters.timeouts.load(Ordering::Relaxed))
                .encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn each_step(&self) -> impl Iterator<Item = ([(&'static str, &str); 3], &StepCounters)> {
        self.0.iter().flat_map(|statistics| {
            statistics
                .steps()
                .into_iter()
                .flat_map(move |(step, both)| {
                    let labels = move |direction| {
                        [
                            ("saga", statistics.name()),
                            ("step", step),
                            ("direction", direction),
                        ]
                    };
                    DIRECTIONS.into_iter().map(labels).zip(both)
                })
        })
    }

    fn encode_standing(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "tidings_saga_current",
            "Open and failed sagas in the database",
            None,
            MetricType::Gauge,
        )?;
        for statistics in &self.0 {
            for (status, of) in STATUSES {
                let labels = [("saga", statistics.name()), ("status", status)];
                ConstGauge::new(of(&statistics.standing()).cast_signed())
                    .encode(metric.encode_family(&labels)?)?;
            }
        }
        let help = "Sagas in the database that the running code cannot continue";
        let mut metric =
            encoder.encode_descriptor("tidings_saga_blocked", help, None, MetricType::Gauge)?;
        for statistics in &self.0 {
            let labels = [("saga", statistics.name())];
            ConstGauge::new(statistics.standing().blocked.cast_signed())
                .encode(metric.encode_family(&labels)?)?;
        }
        let help = "Longest time since the last transition of an open saga";
        let mut metric = encoder.encode_descriptor(
            "tidings_saga_idle_seconds_max",
            help,
            None,
            MetricType::Gauge,
        )?;
        for statistics in &self.0 {
            let labels = [("saga", statistics.name())];
            ConstGauge::new(statistics.standing().idle_seconds_max)
                .encode(metric.encode_family(&labels)?)?;
        }
        let help = "Longest time since a saga became due";
        let mut metric = encoder.encode_descriptor(
            "tidings_saga_overdue_seconds_max",
            help,
            None,
            MetricType::Gauge,
        )?;
        for statistics in &self.0 {
            let labels = [("saga", statistics.name())];
            ConstGauge::new(statistics.standing().overdue_seconds_max)
                .encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_waits(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Time for which due timers of this process have waited for replies";
        let mut metric = encoder.encode_descriptor(
            "tidings_saga_timers_waiting",
            help,
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for statistics in &self.0 {
            let labels = [("saga", statistics.name())];
            ConstGauge::new(statistics.timers_waiting().as_secs_f64())
                .encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

// === impl Collector ===

impl Collector for SagaMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_ends(&mut encoder)?;
        self.encode_steps(&mut encoder)?;
        self.encode_standing(&mut encoder)?;
        self.encode_waits(&mut encoder)
    }
}
