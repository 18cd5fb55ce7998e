//! Metrics of breakers and bulkheads for a `prometheus-client` registry.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::bulkhead::Bulkhead;
use super::circuit_breaker::{CircuitBreaker, CircuitState};

/// Metrics of the added breakers and bulkheads, read at each scrape.
///
/// | metric | type | meaning |
/// |---|---|---|
/// | `circuit_breaker_state{name, state}` | gauge | 1 for the current state, 0 for the others |
/// | `circuit_breaker_calls_total{name, outcome}` | counter | calls by outcome (1) |
/// | `circuit_breaker_transitions_total{name, to}` | counter | transitions to a state |
/// | `bulkhead_running{name}`, `bulkhead_waiting{name}` | gauge | running and waiting calls |
/// | `bulkhead_rejected_total{name}` | counter | rejected calls |
///
/// 1. The outcomes are `succeeded`, `failed`, `ignored` and `rejected`.
///
/// # Examples
///
/// ```
/// use prometheus_client::{encoding::text::encode, registry::Registry};
/// use tidings::resilience::{CircuitBreaker, CircuitBreakerPolicy, ResilienceMetrics};
///
/// let breaker = CircuitBreaker::new("stock", CircuitBreakerPolicy::default());
/// let mut registry = Registry::default();
/// ResilienceMetrics::default().breaker(&breaker).register(&mut registry);
///
/// let mut text = String::new();
/// encode(&mut text, &registry).unwrap();
/// assert!(text.contains(r#"circuit_breaker_state{name="stock",state="closed"} 1"#));
/// ```
#[derive(Debug, Default)]
pub struct ResilienceMetrics {
    breakers: Vec<CircuitBreaker>,
    bulkheads: Vec<Bulkhead>,
}

impl ResilienceMetrics {
    /// Adds this breaker.
    #[must_use]
    pub fn breaker(mut self, breaker: &CircuitBreaker) -> Self {
        self.breakers.push(breaker.clone());
        self
    }

    /// Adds this bulkhead.
    #[must_use]
    pub fn bulkhead(mut self, bulkhead: &Bulkhead) -> Self {
        self.bulkheads.push(bulkhead.clone());
        self
    }

    /// Registers the metrics. Call it once per registry, because all metrics of one name must
    /// belong to the same collector.
    pub fn register(self, registry: &mut Registry) {
        registry.register_collector(Box::new(self));
    }
}

// === impl Collector ===

impl Collector for ResilienceMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        self.encode_breakers(&mut encoder)?;
        self.encode_bulkheads(&mut encoder)
    }
}

impl ResilienceMetrics {
    fn encode_breakers(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut metric = encoder.encode_descriptor(
            "circuit_breaker_state",
            "1 for the current state",
            None,
            MetricType::Gauge,
        )?;
        for breaker in &self.breakers {
            for state in [
                CircuitState::Closed,
                CircuitState::Open,
                CircuitState::HalfOpen,
            ] {
                let labels = [
                    ("name", breaker.name().to_owned()),
                    ("state", state.to_string()),
                ];
                ConstGauge::new(i64::from(breaker.state() == state))
                    .encode(metric.encode_family(&labels)?)?;
            }
        }
        let mut metric = encoder.encode_descriptor(
            "circuit_breaker_calls",
            "Calls by outcome",
            None,
            MetricType::Counter,
        )?;
        for breaker in &self.breakers {
            let counts = breaker.counts();
            let by_outcome = [
                ("succeeded", counts.succeeded),
                ("failed", counts.failed),
                ("ignored", counts.ignored),
                ("rejected", counts.rejected),
            ];
            for (outcome, calls) in by_outcome {
                let labels = [("name", breaker.name()), ("outcome", outcome)];
                ConstCounter::new(calls).encode(metric.encode_family(&labels)?)?;
            }
        }
        let help = "Transitions to a state";
        let mut metric = encoder.encode_descriptor(
            "circuit_breaker_transitions",
            help,
            None,
            MetricType::Counter,
        )?;
        for breaker in &self.breakers {
            let counts = breaker.counts();
            for (to, times) in [
                (CircuitState::Open, counts.opened),
                (CircuitState::HalfOpen, counts.half_opened),
                (CircuitState::Closed, counts.closed),
            ] {
                let labels = [("name", breaker.name().to_owned()), ("to", to.to_string())];
                ConstCounter::new(times).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn encode_bulkheads(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut metric = encoder.encode_descriptor(
            "bulkhead_running",
            "Running calls",
            None,
            MetricType::Gauge,
        )?;
        for bulkhead in &self.bulkheads {
            ConstGauge::new(bulkhead.running() as i64)
                .encode(metric.encode_family(&[("name", bulkhead.name())])?)?;
        }
        let mut metric = encoder.encode_descriptor(
            "bulkhead_waiting",
            "Waiting calls",
            None,
            MetricType::Gauge,
        )?;
        for bulkhead in &self.bulkheads {
            ConstGauge::new(bulkhead.waiting() as i64)
                .encode(metric.encode_family(&[("name", bulkhead.name())])?)?;
        }
        let mut metric = encoder.encode_descriptor(
            "bulkhead_rejected",
            "Rejected calls",
            None,
            MetricType::Counter,
        )?;
        for bulkhead in &self.bulkheads {
            ConstCounter::new(bulkhead.rejected())
                .encode(metric.encode_family(&[("name", bulkhead.name())])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::resilience::{BulkheadPolicy, CircuitBreakerPolicy};

    #[test]
    fn what_was_counted_is_shown_by_name() {
        let breakers = ["stock", "payment"]
            .map(|name| CircuitBreaker::new(name, CircuitBreakerPolicy::default()));
        for _ in 0..5 {
            breakers[0].admit().expect("the circuit is closed").failed();
        }
        breakers[0].admit().expect_err("the circuit is open");
        breakers[1]
            .admit()
            .expect("the circuit is closed")
            .succeeded();
        let bulkhead = Bulkhead::new("stock", BulkheadPolicy::default());
        let mut registry = Registry::default();
        let metrics = breakers
            .iter()
            .fold(ResilienceMetrics::default(), ResilienceMetrics::breaker);
        metrics.bulkhead(&bulkhead).register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).expect("a string takes any text");
        for line in [
            r#"circuit_breaker_state{name="stock",state="open"} 1"#,
            r#"circuit_breaker_state{name="stock",state="closed"} 0"#,
            r#"circuit_breaker_state{name="payment",state="closed"} 1"#,
            r#"circuit_breaker_calls_total{name="stock",outcome="failed"} 5"#,
            r#"circuit_breaker_calls_total{name="stock",outcome="rejected"} 1"#,
            r#"circuit_breaker_calls_total{name="payment",outcome="succeeded"} 1"#,
            r#"circuit_breaker_transitions_total{name="stock",to="open"} 1"#,
            r#"circuit_breaker_transitions_total{name="stock",to="closed"} 0"#,
            r#"circuit_breaker_transitions_total{name="payment",to="half-open"} 0"#,
            r#"bulkhead_running{name="stock"} 0"#,
            r#"bulkhead_waiting{name="stock"} 0"#,
            r#"bulkhead_rejected_total{name="stock"} 0"#,
        ] {
            assert!(
                text.lines().any(|shown| shown == line),
                "{line} is missing in\n{text}"
            );
        }
    }
}
