//! Metrics and health of `tidings verify --follow`.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
use prometheus_client::registry::Registry;

use crate::health::{Health, Status};
use crate::inspect::proof::Report;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Metrics of the rounds. Clones share them.
#[derive(Clone)]
pub(super) struct VerifyMetrics {
    registry: Arc<Registry>,
    until: Gauge<f64, AtomicU64>,
    findings: Family<KindLabel, Counter>,
    rounds: Family<OutcomeLabel, Counter>,
    status: Arc<Mutex<Status>>,
}

impl VerifyMetrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("tidings");
        let until = Gauge::<f64, AtomicU64>::default();
        registry.register(
            "verified_until_seconds",
            "Unix time before which every event of the outbox is verified",
            until.clone(),
        );
        let findings = Family::<KindLabel, Counter>::default();
        registry.register(
            "verify_findings",
            "Events that were lost, repeated, reordered or never committed",
            findings.clone(),
        );
        for kind in ["lost", "repeated", "reordered", "never_committed"] {
            let _ = findings.get_or_create(&KindLabel { kind });
        }
        let rounds = Family::<OutcomeLabel, Counter>::default();
        registry.register("verify_rounds", "Rounds, by outcome", rounds.clone());
        Self {
            registry: Arc::new(registry),
            until,
            findings,
            rounds,
            status: Arc::new(Mutex::new(Status::Ok("the first round runs".into()))),
        }
    }

    /// Adds a round. The verified time stays in the past while something is wrong, so that one
    /// alert covers both a finding and a verification that does not advance.
    pub(super) fn round(&self, report: &Report) {
        let tally = &report.tally;
        for (kind, count) in [
            ("lost", tally.lost),
            ("repeated", tally.repeated),
            ("reordered", tally.reordered),
            ("never_committed", tally.never_committed),
        ] {
            self.findings
                .get_or_create(&KindLabel { kind })
                .inc_by(count);
        }
        let has_findings = ["lost", "repeated", "reordered", "never_committed"]
            .into_iter()
            .any(|kind| self.findings.get_or_create(&KindLabel { kind }).get() > 0);
        if !has_findings {
            let millis = report.verified_until.timestamp_millis();
            self.until.set(millis as f64 / 1_000.0);
        }
        self.finish(if report.matches { "matches" } else { "differs" });
        self.set(match has_findings {
            true => Status::Degraded("the topics differ from the outbox".into()),
            false => Status::Ok(format!("verified until {}", report.verified_until)),
        });
    }

    /// Adds a round that failed.
    pub(super) fn failed(&self) {
        self.finish("failed");
        self.set(Status::Failing("the last round failed".into()));
    }

    fn finish(&self, outcome: &'static str) {
        self.rounds.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    fn set(&self, status: Status) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// Returns the metrics as OpenMetrics text.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    pub(super) fn health(&self) -> Health {
        let status = self.status.clone();
        Health::new().check("verification", move || {
            let status = status.lock().unwrap_or_else(PoisonError::into_inner);
            std::future::ready(status.clone())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::verify::text::tests::report_with;

    #[test]
    fn the_verified_time_stops_at_the_first_finding() {
        let metrics = VerifyMetrics::new();
        let good = report_with(|_| ());
        metrics.round(&good);
        let until = |text: &str| {
            text.lines()
                .find(|line| line.starts_with("tidings_verified_until_seconds "))
                .map(str::to_owned)
        };
        let before = until(&metrics.text()).expect("the gauge");
        assert!(!before.ends_with(" 0.0"), "{before}");
        let mut bad = report_with(|tally| tally.lost = 2);
        bad.verified_until += chrono::TimeDelta::hours(1);
        metrics.round(&bad);
        let text = metrics.text();
        assert_eq!(until(&text), Some(before), "{text}");
        assert!(
            text.contains(r#"tidings_verify_findings_total{kind="lost"} 2"#),
            "{text}"
        );
    }
}
