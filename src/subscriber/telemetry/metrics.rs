//! Metrics of subscribers for a `prometheus-client` registry.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::counters::Counters;
use super::statistics::{Count, PartitionStatistics};
use crate::subscriber::{Statistics, SubscriberState};

/// Metrics of subscribers, computed when the registry is encoded.
///
/// - `tidings_subscriber_events_total{subscriber, type, outcome}` (counter): events by outcome:
///   `handled`, `duplicate`, `skipped`, `unknown`, `parked`, `retried`, `dead_lettered`,
///   `discarded`, `conflicting`, `held`, `letter_refused`
/// - `tidings_subscriber_failed_attempts_total{subscriber, type}` (counter): attempts that failed
///   and were counted against their event
/// - `tidings_subscriber_attempt_seconds{subscriber, type}` (histogram): duration of an attempt,
///   including layers, inbox, handlers and commit
/// - `tidings_subscriber_removed_unread_total{subscriber, topic}` (counter): records that were
///   removed from the topic before they were read, and are not handled
/// - `tidings_subscriber_running{subscriber}` (gauge): running handlers
/// - `tidings_subscriber_state{subscriber, state}` (gauge): 1 for the current
///   [state](SubscriberState), 0 for the others
/// - `tidings_subscriber_lag{subscriber, topic, partition}` (gauge): unfinished records, including
///   those that have not been read from Kafka yet
/// - `tidings_subscriber_unfinished{subscriber, topic, partition}` (gauge): records that are read
///   and not finished
/// - `tidings_subscriber_parked_aggregates{subscriber, topic, partition}` (gauge): aggregates
///   that are parked in the table `subscriber_parked`
///
/// `type` is empty for records that are not events. The metrics of a partition are reported by the
/// member that owns it.
///
/// # Examples
///
/// ```
/// use prometheus_client::{encoding::text::encode, registry::Registry};
/// use tidings::subscriber::SubscriberMetrics;
/// # use tidings::{Bus, Subscriber, kafka};
///
/// # let bus = Bus::new(kafka::Settings::default());
/// let subscriber: Subscriber<()> = bus.subscriber("inventory");
/// let mut registry = Registry::default();
/// SubscriberMetrics::default().subscriber(&subscriber.statistics()).register(&mut registry);
///
/// let mut text = String::new();
/// encode(&mut text, &registry).unwrap();
/// let line = r#"tidings_subscriber_state{subscriber="inventory",state="starting"} 1"#;
/// assert!(text.contains(line));
/// ```
#[derive(Debug, Default)]
pub struct SubscriberMetrics(Vec<Statistics>);

/// The label of each outcome.
const OUTCOMES: [(Count, &str); 9] = [
    (Count::Handled, "handled"),
    (Count::Duplicates, "duplicate"),
    (Count::Skipped, "skipped"),
    (Count::Parked, "parked"),
    (Count::Retried, "retried"),
    (Count::DeadLettered, "dead_lettered"),
    (Count::Discarded, "discarded"),
    (Count::Conflicting, "conflicting"),
    (Count::RefusedLetters, "letter_refused"),
];

/// A metric of a partition: its name, its help text, and the function that reads it.
type OfPartition = (
    &'static str,
    &'static str,
    fn(&PartitionStatistics) -> Option<u64>,
);

const OF_PARTITIONS: [OfPartition; 3] = [
    (
        "tidings_subscriber_lag",
        "Unfinished records, including those not read from Kafka yet",
        |partition| partition.lag,
    ),
    (
        "tidings_subscriber_unfinished",
        "Records that are read and not finished",
        |partition| Some(partition.unfinished),
    ),
    (
        "tidings_subscriber_parked_aggregates",
        "Aggregates that wait in the table subscriber_parked",
        |partition| Some(partition.parked_aggregates),
    ),
];

impl SubscriberMetrics {
    /// Adds a subscriber.
    #[must_use]
    pub fn subscriber(mut self, statistics: &Statistics) -> Self {
        self.0.push(statistics.clone());
        self
    }

    /// Adds these metrics to a registry. Call it once per registry, because all metrics with one
    /// name must be encoded together.
    pub fn register(self, registry: &mut Registry) {
        registry.register_collector(Box::new(self));
    }

    fn encode_events(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "tidings_subscriber_events",
            "Events by outcome",
            None,
            MetricType::Counter,
        )?;
        for statistics in &self.0 {
            let name = statistics.name();
            for (event_type, counters) in statistics.by_type() {
                for (count, outcome) in OUTCOMES {
                    // A record that is not an event has no other outcomes.
                    if event_type.is_empty()
                        && !matches!(
                            count,
                            Count::DeadLettered | Count::Discarded | Count::RefusedLetters
                        )
                    {
                        continue;
                    }
                    let labels = [
                        ("subscriber", name),
                        ("type", event_type),
                        ("outcome", outcome),
                    ];
                    ConstCounter::new(counters.get(count))
                        .encode(metric.encode_family(&labels)?)?;
                }
            }
            for (outcome, by_type) in [
                ("unknown", statistics.by_unknown_type()),
                ("held", statistics.by_held_type()),
            ] {
                for (event_type, count) in by_type {
                    let labels = [
                        ("subscriber", name),
                        ("type", &event_type),
                        ("outcome", outcome),
                    ];
                    ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }

    fn encode_attempts(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Attempts that failed and were counted against their event";
        let mut metric = encoder.encode_descriptor(
            "tidings_subscriber_failed_attempts",
            help,
            None,
            MetricType::Counter,
        )?;
        for statistics in &self.0 {
            for (event_type, counters) in events_by_type(statistics) {
                let labels = [("subscriber", statistics.name()), ("type", event_type)];
                ConstCounter::new(counters.get(Count::FailedAttempts))
                    .encode(metric.encode_family(&labels)?)?;
            }
        }
        let help = "One attempt: layers, inbox, handlers and commit";
        let mut metric = encoder.encode_descriptor(
            "tidings_subscriber_attempt",
            help,
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for statistics in &self.0 {
            for (event_type, counters) in events_by_type(statistics) {
                let labels = [("subscriber", statistics.name()), ("type", event_type)];
                let (sum, buckets) = counters.attempts();
                let count = buckets.iter().map(|(_, count)| count).sum();
                metric
                    .encode_family(&labels)?
                    .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
            }
        }
        Ok(())
    }

    fn encode_removed(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Records that were removed from the topic before they were read";
        let mut metric = encoder.encode_descriptor(
            "tidings_subscriber_removed_unread",
            help,
            None,
            MetricType::Counter,
        )?;
        for statistics in &self.0 {
            for (topic, records) in statistics.removed_by_topic() {
                let labels = [("subscriber", statistics.name()), ("topic", &topic)];
                ConstCounter::new(records).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn encode_state(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "tidings_subscriber_running",
            "Running handlers",
            None,
            MetricType::Gauge,
        )?;
        for statistics in &self.0 {
            ConstGauge::new(statistics.running() as i64)
                .encode(metric.encode_family(&[("subscriber", statistics.name())])?)?;
        }
        let mut metric = encoder.encode_descriptor(
            "tidings_subscriber_state",
            "1 for the current state, 0 for the others",
            None,
            MetricType::Gauge,
        )?;
        for statistics in &self.0 {
            let is = statistics.state();
            for state in SubscriberState::ALL {
                let labels = [
                    ("subscriber", statistics.name().to_owned()),
                    ("state", state.to_string()),
                ];
                ConstGauge::new(i64::from(is == state)).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn encode_partitions(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, of) in OF_PARTITIONS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for statistics in &self.0 {
                for partition in statistics.partitions() {
                    let Some(value) = of(&partition) else {
                        continue;
                    };
                    let number = partition.partition.to_string();
                    let labels = [
                        ("subscriber", statistics.name()),
                        ("topic", &*partition.topic),
                        ("partition", &number),
                    ];
                    ConstGauge::new(value.cast_signed()).encode(metric.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

// === impl Collector ===

impl Collector for SubscriberMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_events(&mut encoder)?;
        self.encode_attempts(&mut encoder)?;
        self.encode_removed(&mut encoder)?;
        self.encode_state(&mut encoder)?;
        self.encode_partitions(&mut encoder)
    }
}

/// The counters of events by type, without those of records that are not events.
fn events_by_type(statistics: &Statistics) -> impl Iterator<Item = (&str, &Counters)> {
    let all = statistics.by_type().into_iter();
    all.filter(|(event_type, _)| !event_type.is_empty())
}
