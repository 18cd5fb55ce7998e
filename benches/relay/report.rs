//! Figures of a run, in absolute numbers and as ratios against the goals.

use std::{collections::BTreeMap, fmt};

use crate::{
    harness::{tidings::Mode, topic::Drain},
    options::{Scenario, Sized},
};

/// A measured path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Path {
    Ceiling,
    AsItComes,
    Producer,
    Debezium,
    Tidings(Mode),
}

// === impl Display ===

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ceiling => "walsender, discarded, buffered reads",
            Self::AsItComes => "walsender, discarded, immediate reads",
            Self::Producer => "bare librdkafka producer",
            Self::Debezium => "Debezium, tuned",
            Self::Tidings(Mode::Default) => "Tidings, defaults (auto, exactly once)",
            Self::Tidings(Mode::WalOnce) => "Tidings, log only, exactly once",
            Self::Tidings(Mode::WalAtLeastOnce) => "Tidings, log only, at least once",
            Self::Tidings(Mode::Poll) => "Tidings, table only, exactly once",
        })
    }
}

/// The rounds of one scenario.
pub(crate) struct Report {
    sized: Sized,
    rounds: BTreeMap<Path, Vec<Drain>>,
}

/// A figure and its goals.
struct Goal {
    what: String,
    value: Option<f64>,
    must: f64,
    aim: f64,
    least: bool,
}

impl Report {
    pub(crate) fn new(sized: Sized) -> Self {
        Self {
            sized,
            rounds: BTreeMap::new(),
        }
    }

    /// Records a drain and prints it.
    pub(crate) fn add(&mut self, path: Path, round: usize, drain: Drain) {
        println!(
            "  round {round}: {path:<38} {:>9.0} events/s{}",
            drain.events_per_second,
            if drain.cost.cpu_seconds > 0.0 {
                format!(
                    "  {:.2} CPU s  {:.0} MB  first after {:.1} s",
                    drain.cost.cpu_seconds,
                    drain.cost.peak_megabytes,
                    drain.first_after.as_secs_f64()
                )
            } else {
                String::new()
            }
        );
        self.rounds.entry(path).or_default().push(drain);
    }

    fn median(&self, path: Path, figure: fn(&Drain) -> f64) -> Option<f64> {
        let mut figures: Vec<f64> = self.rounds.get(&path)?.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied()
    }

    fn ratio(&self, of: Mode, to: Path) -> Option<f64> {
        let rate = |drain: &Drain| drain.events_per_second;
        Some(self.median(Path::Tidings(of), rate)? / self.median(to, rate)?)
    }

    fn goals(&self) -> Vec<Goal> {
        let name = self.sized.scenario.name();
        let goal = |what: &str, value, must, aim, least| Goal {
            what: format!("{name}: {what}"),
            value,
            must,
            aim,
            least,
        };
        let million = 1e6 / self.sized.backlog.events as f64;
        let cpu = self
            .median(Path::Tidings(Mode::WalAtLeastOnce), |drain| {
                drain.cost.cpu_seconds
            })
            .map(|cpu| cpu * million);
        let peak = self.median(Path::Tidings(Mode::Default), |drain| {
            drain.cost.peak_megabytes
        });
        let memory = goal("peak memory, MB", peak, 64.0, 32.0, false);
        let once = self.ratio(Mode::WalOnce, Path::Tidings(Mode::WalAtLeastOnce));
        let once = goal(
            "exactly once against at least once, log only",
            once,
            0.80,
            0.92,
            true,
        );
        let debezium = |mode| self.ratio(mode, Path::Debezium);
        match self.sized.scenario {
            Scenario::Drain => vec![
                goal(
                    "log only, at least once, against Debezium",
                    debezium(Mode::WalAtLeastOnce),
                    2.8,
                    3.4,
                    true,
                ),
                goal(
                    "the same against the walsender's limit",
                    self.ratio(Mode::WalAtLeastOnce, Path::Ceiling),
                    0.70,
                    0.85,
                    true,
                ),
                goal(
                    "the same, CPU seconds per million events",
                    cpu,
                    4.5,
                    2.5,
                    false,
                ),
                once,
                goal(
                    "defaults against Debezium",
                    debezium(Mode::Default),
                    3.5,
                    5.0,
                    true,
                ),
                memory,
            ],
            Scenario::Single => vec![
                once,
                goal(
                    "defaults against Debezium",
                    debezium(Mode::Default),
                    5.0,
                    8.0,
                    true,
                ),
                memory,
            ],
            Scenario::Long => vec![
                goal(
                    "defaults against Debezium",
                    debezium(Mode::Default),
                    3.5,
                    5.0,
                    true,
                ),
                memory,
            ],
            Scenario::Wide => vec![
                goal(
                    "defaults against Debezium",
                    debezium(Mode::Default),
                    2.2,
                    2.8,
                    true,
                ),
                memory,
            ],
            Scenario::Huge | Scenario::Poison | Scenario::Topics => vec![memory],
        }
    }
}

/// Prints the medians of every scenario, then the goals.
pub(crate) fn print(reports: &[Report]) {
    println!(
        "\n| scenario | path | events/s | CPU s | peak MB | CPU s per million |\
         \n|---|---|---|---|---|---|"
    );
    for report in reports {
        for path in report.rounds.keys().copied() {
            let rate = report
                .median(path, |drain| drain.events_per_second)
                .unwrap_or_default();
            let cpu = report
                .median(path, |drain| drain.cost.cpu_seconds)
                .unwrap_or_default();
            let peak = report
                .median(path, |drain| drain.cost.peak_megabytes)
                .unwrap_or_default();
            let million = cpu * 1e6 / report.sized.backlog.events as f64;
            let shown = |figure: f64, digits: usize| {
                if figure > 0.0 {
                    format!("{figure:.digits$}")
                } else {
                    "–".to_owned()
                }
            };
            println!(
                "| {} | {path} | {rate:.0} | {} | {} | {} |",
                report.sized.scenario.name(),
                shown(cpu, 2),
                shown(peak, 0),
                shown(million, 2)
            );
        }
    }
    println!("\n| figure | required | aim | measured | |\n|---|---|---|---|---|");
    for goal in reports.iter().flat_map(Report::goals) {
        let Some(value) = goal.value else { continue };
        let reached = |bound: f64| {
            if goal.least {
                value >= bound
            } else {
                value <= bound
            }
        };
        let verdict = match (reached(goal.must), reached(goal.aim)) {
            (_, true) => "aim reached",
            (true, false) => "required reached",
            (false, false) => "MISSED",
        };
        let sign = if goal.least { "≥" } else { "≤" };
        println!(
            "| {} | {sign} {} | {sign} {} | {value:.2} | {verdict} |",
            goal.what, goal.must, goal.aim
        );
    }
}
