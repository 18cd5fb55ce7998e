//! Alerts and the dashboard: promtool accepts them, and each alert has a section for operators.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Folder, path, run, text, yaml};

pub(super) const RULES: &str = "deploy/prometheus/tidings.rules.yml";
pub(super) const DASHBOARD: &str = "deploy/grafana/tidings.json";
const PROMTOOL: &str = "on Debian: apt-get install prometheus";

/// Returns name, expression and runbook of each alert.
pub(super) fn alerts() -> Vec<(String, String, String)> {
    let rules = yaml(RULES);
    let groups = rules[0]["groups"].as_vec().expect("groups").iter();
    let rules = groups.flat_map(|group| group["rules"].as_vec().expect("rules"));
    let text = |value: &yaml_rust2::Yaml| value.as_str().unwrap_or_default().to_owned();
    rules
        .map(|rule| {
            let runbook = &rule["annotations"]["runbook"];
            (text(&rule["alert"]), text(&rule["expr"]), text(runbook))
        })
        .collect()
}

/// Returns the expressions of the dashboard's panels, with the title of each.
pub(super) fn panels() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&text(DASHBOARD)).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let all = panels.flat_map(|panel| {
        let title = panel["title"].as_str().expect("a title").to_owned();
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.map(move |target| {
            let expression = target["expr"].as_str().expect("an expression");
            (title.clone(), expression.to_owned())
        })
    });
    all.collect()
}

fn promtool(arguments: &[&str]) -> Option<String> {
    run("promtool", arguments, PROMTOOL)
}

#[test]
fn the_alerts_fire_as_their_tests_say() {
    let file = |name: &str| path(name).to_str().expect("UTF-8").to_owned();
    let _ = promtool(&["check", "rules", &file(RULES)]);
    let configuration = file("deploy/prometheus/prometheus.yml");
    let _ = promtool(&["check", "config", &configuration]);
    let _ = promtool(&["test", "rules", &file("deploy/prometheus/tidings.test.yml")]);
}

#[test]
fn each_alert_has_a_test() {
    let tests = text("deploy/prometheus/tidings.test.yml");
    for (alert, ..) in alerts() {
        let name = format!("alertname: {alert}\n");
        let fires = tests.split(&name).skip(1);
        let fires = fires.filter(|rest| rest.trim_start().starts_with("exp_alerts:\n"));
        assert!(fires.count() > 0, "{alert} never fires in a test");
    }
}

#[test]
fn the_dashboard_consists_of_expressions_that_prometheus_accepts() {
    let rules: String = panels()
        .iter()
        .enumerate()
        .map(|(number, (title, expression))| {
            let expression = expression.replace("$__rate_interval", "5m");
            format!(
                "      # {title}\n      - record: panel:{number}\n        expr: {expression:?}\n"
            )
        })
        .collect();
    let folder = Folder::new();
    let text = format!("groups:\n  - name: dashboard\n    rules:\n{rules}");
    let file = folder.file("dashboard.yml", &text);
    let _ = promtool(&["check", "rules", "--lint=none", &file]);
}

#[test]
fn each_alert_has_a_section_for_operators() {
    let page = text("docs/operating.md");
    let sections: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .filter(|title| title.starts_with("Tidings"))
        .collect();
    let alerts = alerts();
    let names: BTreeSet<&str> = alerts.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(sections, names);
    for (name, _, runbook) in &alerts {
        let link = format!("docs/operating.md#{}", name.to_lowercase());
        assert_eq!(*runbook, link, "{name}");
    }
}
