//! What subscribers count, for a `prometheus-client` registry.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::statistics::{Count, PartitionStatistics};
use crate::subscriber::{Statistics, SubscriberState};

/// The metrics of these subscribers, read when they are asked for.
///
/// | metric | type | meaning |
/// |---|---|---|
/// | `tidings_subscriber_events_total{subscriber, type, outcome}` | counter | events by what became of them: `handled`, `duplicate`, `skipped`, `unknown`, `detoured`, `retried`, `dead_lettered`, `discarded`, `conflicting`, `held`, `letter_refused` |
/// | `tidings_subscriber_failed_attempts_total{subscriber, type}` | counter | attempts that failed and were counted against their event |
/// | `tidings_subscriber_attempt_seconds{subscriber, type}` | histogram | one attempt: layers, inbox, handlers and commit |
/// | `tidings_subscriber_removed_unread_total{subscriber, topic}` | counter | records that were removed from the topic before they were read, and are not handled |
/// | `tidings_subscriber_running{subscriber}` | gauge | handlers that run |
/// | `tidings_subscriber_state{subscriber, state}` | gauge | 1 for the [state](SubscriberState) it is in, 0 for the others |
/// | `tidings_subscriber_lag{subscriber, topic, partition}` | gauge | records that are not finished, those that Kafka holds included |
/// | `tidings_subscriber_unfinished{subscriber, topic, partition}` | gauge | records that are read and not finished |
/// | `tidings_subscriber_detoured_aggregates{subscriber, topic, partition}` | gauge | aggregates that wait in the table `detour` |
///
/// `type` is empty for what is no event. What belongs to a partition is told by the member that has it.
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
/// assert!(text.contains(r#"tidings_subscriber_state{subscriber="inventory",state="starting"} 1"#));
/// ```
#[derive(Debug, Default)]
pub struct SubscriberMetrics(Vec<Statistics>);

/// The word of each outcome.
const OUTCOMES: [(Count, &str); 9] = [
    (Count::Handled, "handled"),
    (Count::Duplicates, "duplicate"),
    (Count::Skipped, "skipped"),
    (Count::Detoured, "detoured"),
    (Count::Retried, "retried"),
    (Count::DeadLettered, "dead_lettered"),
    (Count::Discarded, "discarded"),
    (Count::Conflicting, "conflicting"),
    (Count::RefusedLetters, "letter_refused"),
];

/// What is told of a partition: its name, its help, and where it is.
type OfPartition = (
    &'static str,
    &'static str,
    fn(&PartitionStatistics) -> Option<u64>,
);

const OF_PARTITIONS: [OfPartition; 3] = [
    (
        "tidings_subscriber_lag",
        "Records that are not finished, those that Kafka holds included",
        |partition| partition.lag,
    ),
    (
        "tidings_subscriber_unfinished",
        "Records that are read and not finished",
        |partition| Some(partition.unfinished),
    ),
    (
        "tidings_subscriber_detoured_aggregates",
        "Aggregates that wait in the table detour",
        |partition| Some(partition.detoured_aggregates),
    ),
];

impl SubscriberMetrics {
    /// Shows this subscriber.
    #[must_use]
    pub fn subscriber(mut self, statistics: &Statistics) -> Self {
        self.0.push(statistics.clone());
        self
    }

    /// Adds them to a registry. Once for each registry: metrics of one name belong together.
    pub fn register(self, registry: &mut Registry) {
        registry.register_collector(Box::new(self));
    }

    fn encode_events(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "tidings_subscriber_events",
            "Events by what became of them",
            None,
            MetricType::Counter,
        )?;
        for statistics in &self.0 {
            let name = statistics.name();
            for (event_type, counters) in statistics.by_type() {
                for (count, outcome) in OUTCOMES {
                    // What is no event can only be buried.
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
            for (event_type, count) in statistics.by_unknown_type() {
                let labels = [
                    ("subscriber", name),
                    ("type", &event_type),
                    ("outcome", "unknown"),
                ];
                ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
            }
            for (event_type, count) in statistics.by_held_type() {
                let labels = [
                    ("subscriber", name),
                    ("type", &event_type),
                    ("outcome", "held"),
                ];
                ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
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
            for (event_type, counters) in statistics
                .by_type()
                .into_iter()
                .filter(|(event_type, _)| !event_type.is_empty())
            {
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
            for (event_type, counters) in statistics
                .by_type()
                .into_iter()
                .filter(|(event_type, _)| !event_type.is_empty())
            {
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
            "Handlers that run",
            None,
            MetricType::Gauge,
        )?;
        for statistics in &self.0 {
            ConstGauge::new(statistics.running() as i64)
                .encode(metric.encode_family(&[("subscriber", statistics.name())])?)?;
        }
        let mut metric = encoder.encode_descriptor(
            "tidings_subscriber_state",
            "1 for the state it is in",
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
