//! The findings as text and as JSON.

use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr as _;

use super::{Finding, State};
use crate::cli::config::Config;
use crate::cli::escape::escaped;
use crate::cli::table::{Align, aligned_whole, wrapped};
use crate::cli::terminal;

/// Width of the names of findings beyond which the text follows in the next line.
const NAME_WIDTH_MAX: usize = 30;

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
        aligned_whole(
            &[Align::Left, Align::Text, Align::Text],
            &entries.collect::<Vec<_>>()
        )
    );
    text.push_str(&findings_within(findings, terminal::width()));
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

/// Formats the findings of each end below its name, in lines of at most `columns` columns.
fn findings_within(findings: &[Finding], columns: usize) -> String {
    let names = findings
        .iter()
        .map(|finding| escaped(&finding.name).width());
    let width = names
        .filter(|width| *width <= NAME_WIDTH_MAX)
        .max()
        .unwrap_or_default();
    // The mark and the name precede the text.
    let indent = width + 10;
    let (mut text, mut end) = (String::new(), "");
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
        let (name, result) = (escaped(&finding.name), escaped(&finding.text));
        let padding = width.saturating_sub(name.width());
        let head = format!("  {mark}  {name}{:padding$}  ", "");
        let line = match head.width() > indent {
            true => format!("{}\n{:indent$}{result}", head.trim_end(), ""),
            false => head + &result,
        };
        for line in line.lines() {
            text.push_str(&wrapped(line, indent, columns));
            text.push('\n');
        }
        if let Some(remedy) = &finding.remedy {
            let remedy = format!("{:indent$}-> {}", "", escaped(remedy));
            text.push_str(&wrapped(&remedy, indent + 3, columns));
            text.push('\n');
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(name: &str, state: State, text: &str, remedy: Option<&str>) -> Finding {
        Finding {
            end: "postgres",
            name: name.into(),
            state,
            text: text.into(),
            remedy: remedy.map(str::to_owned),
        }
    }

    #[test]
    fn findings_are_wrapped_between_words_below_their_own_column() {
        let findings = [
            finding("wal_level", State::Ok, "logical", None),
            finding(
                "rights",
                State::Fail,
                "the role lacks three rights on the tables of the schema",
                Some("grant select, insert on tidings.outbox to relay"),
            ),
        ];
        let expected = "\n\
postgres
  ok    wal_level  logical
  FAIL  rights     the role lacks three
                   rights on the tables of
                   the schema
                   -> grant select, insert
                      on tidings.outbox to
                      relay
";
        assert_eq!(findings_within(&findings, 43), expected);
        let wide = findings_within(&findings, 200);
        assert_eq!(wide.lines().count(), 5, "{wide}");
    }

    #[test]
    fn a_long_name_stands_on_a_line_of_its_own() {
        let name = "x".repeat(60);
        let text = "its records are larger than the relay sends. ".repeat(4);
        let findings = [
            finding("lease", State::Ok, "free", None),
            finding(&name, State::Warn, text.trim_end(), Some(&text)),
        ];
        let text = findings_within(&findings, 80);
        assert!(text.contains(&format!("  warn  {name}\n               its records")));
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
    }
}
