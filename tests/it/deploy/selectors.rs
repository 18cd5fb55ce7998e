//! Metrics in PromQL expressions, and in the text that a program exports.

use std::collections::{BTreeMap, BTreeSet};

const PREFIX: &str = "tidings_";

/// Labels that Prometheus adds to each target.
const OF_TARGETS: [&str; 2] = ["job", "instance"];

/// A metric in an expression, with its matchers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selector {
    pub(super) name: String,
    /// Label, operator and value of each matcher.
    pub(super) matchers: Vec<(String, String, String)>,
}

/// Returns the metrics of Tidings in an expression.
pub(super) fn selectors(expression: &str) -> Vec<Selector> {
    let starts = expression.match_indices(PREFIX).map(|(at, _)| at);
    let starts = starts.filter(|at| !expression[..*at].ends_with(is_name));
    starts
        .map(|at| {
            let rest = &expression[at..];
            let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            let braces = rest[end..].strip_prefix('{');
            let inside = braces.and_then(|rest| rest.split_once('}'));
            Selector {
                name: rest[..end].to_owned(),
                matchers: inside.map_or_else(Vec::new, |(inside, _)| matchers(inside)),
            }
        })
        .collect()
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn matchers(inside: &str) -> Vec<(String, String, String)> {
    // No value contains a quote.
    let parts: Vec<&str> = inside.split('"').collect();
    parts
        .chunks_exact(2)
        .map(|pair| {
            let before = pair[0].trim_start_matches(',').trim();
            let at = before.find(|c| !is_name(c)).expect("an operator");
            (
                before[..at].to_owned(),
                before[at..].to_owned(),
                pair[1].to_owned(),
            )
        })
        .collect()
}

/// Metrics that programs export.
#[derive(Debug, Default)]
pub(super) struct Exported {
    /// Names, as in samples.
    names: BTreeSet<String>,
    /// Values of each label of a name, if there was a sample.
    labels: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
}

impl Exported {
    /// Adds the metrics of an OpenMetrics text.
    pub(super) fn add(&mut self, text: &str) {
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                let suffixes: &[&str] = match kind {
                    "counter" => &["_total"],
                    "histogram" => &["_bucket", "_count", "_sum"],
                    _ => &[""],
                };
                let names = suffixes.iter().map(|suffix| format!("{name}{suffix}"));
                self.names.extend(names);
            }
            for sample in selectors(line).into_iter().take(1) {
                if !line.starts_with(PREFIX) {
                    continue;
                }
                let labels = self.labels.entry(sample.name).or_default();
                for (label, _, value) in sample.matchers {
                    labels.entry(label).or_default().insert(value);
                }
            }
        }
    }

    /// Returns the fault of a selector: an unknown name, label or value.
    pub(super) fn fault(&self, selector: &Selector) -> Option<String> {
        let Selector { name, matchers } = selector;
        if !self.names.contains(name) {
            return Some(format!("{name} is not exported"));
        }
        let labels = self.labels.get(name)?;
        matchers.iter().find_map(|(label, operator, value)| {
            if OF_TARGETS.contains(&label.as_str()) {
                return None;
            }
            let Some(values) = labels.get(label) else {
                return Some(format!("{name} has no label {label}"));
            };
            // Alternatives of a pattern. A variable of a dashboard matches anything.
            let wanted = value.split('|').filter(|value| !value.starts_with('$'));
            let unknown = wanted.into_iter().find(|value| !values.contains(*value))?;
            (operator == "=" || operator == "=~")
                .then(|| format!("{name} has no {label} {unknown:?}, but {values:?}"))
        })
    }
}

#[test]
fn an_unknown_metric_label_or_value_is_a_fault() {
    let mut exported = Exported::default();
    exported.add(
        "# TYPE tidings_relay_leader gauge\ntidings_relay_leader 1\n\
         # TYPE tidings_state gauge\ntidings_state{subscriber=\"a\",state=\"running\"} 1\n\
         # TYPE tidings_seen counter\n",
    );
    let fault = |expression: &str| {
        let all = selectors(expression);
        all.iter().find_map(|selector| exported.fault(selector))
    };
    for sound in [
        "sum by (job) (tidings_relay_leader{job=~\"$job\"}) == 0",
        "max(tidings_state{state=\"running\", subscriber=~\"$subscriber\"})",
        "rate(tidings_seen_total[5m]) > 0 or tidings_seen_total offset 5m",
    ] {
        assert_eq!(fault(sound), None, "{sound}");
    }
    for faulty in [
        "tidings_relay_leaders",
        "tidings_seen",
        "tidings_state{status=\"running\"}",
        "tidings_state{state=~\"running|runs\"}",
    ] {
        assert!(fault(faulty).is_some(), "{faulty}");
    }
}
