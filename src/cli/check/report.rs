//! The findings as text and as JSON.

use serde_json::{Value, json};

use super::{Finding, State};
use crate::cli::config::Config;
use crate::cli::escape::escaped;
use crate::cli::table::{Align, aligned_whole};

/// Returns the effective configuration, the findings and a summary line.
pub(super) fn text(config: &Config, findings: &[Finding]) -> String {
    let entries = config.entries.iter().map(|entry| {
        vec![
            format!("  {}", entry.key),
            entry.value.clone().unwrap_or_else(|| "-".into()),
            entry.place.to_string(),
        ]
    });
    let mut text = format!(
        "configuration\n{}",
        aligned_whole(&[Align::Left; 3], &entries.collect::<Vec<_>>())
    );
    let width = findings
        .iter()
        .map(|finding| escaped(&finding.name).chars().count())
        .max()
        .unwrap_or_default();
    let mut end = "";
    for finding in findings {
        if finding.end != end {
            end = finding.end;
            text.push_str(&format!("\n{end}\n"));
        }
        let mark = match finding.state {
            State::Ok => "ok  ",
            State::Warn => "warn",
            State::Fail => "FAIL",
        };
        text.push_str(&format!(
            "  {mark}  {:width$}  {}\n",
            escaped(&finding.name),
            escaped(&finding.text)
        ));
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!(
                "  {:indent$}-> {}\n",
                "",
                escaped(remedy),
                indent = width + 8
            ));
        }
    }
    let count = |state| {
        findings
            .iter()
            .filter(|finding| finding.state == state)
            .count()
    };
    let (warnings, failures) = (count(State::Warn), count(State::Fail));
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    text.push_str(&match (failures, warnings) {
        (0, 0) => "\nno problems found\n".to_owned(),
        (0, _) => format!(
            "\na relay can run; {warnings} warning{}\n",
            plural(warnings)
        ),
        _ => format!(
            "\na relay cannot run: {failures} failure{}, {warnings} warning{}\n",
            plural(failures),
            plural(warnings)
        ),
    });
    text
}

/// Returns the configuration and the findings as JSON.
pub(super) fn json(config: &Config, findings: &[Finding]) -> Value {
    let entries = config.entries.iter().map(
        |entry| json!({ "key": entry.key, "value": entry.value, "from": entry.place.to_string() }),
    );
    let ok = findings.iter().all(|finding| finding.state != State::Fail);
    json!({ "ok": ok, "configuration": entries.collect::<Vec<_>>(), "findings": findings })
}
