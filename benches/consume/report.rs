//! Figures of a run, in absolute numbers and as ratios against the goals.

use std::{collections::BTreeMap, fmt};

use crate::options::Scenario;
use crate::peers::Peer;

/// A measured consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Path {
    Tidings,
    Peer(Peer),
    Pgbench,
    /// librdkafka alone, the client that the subscriber uses.
    Bare,
    /// librdkafka and the JSON parser.
    Parsed,
}

/// Figures of one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) records: u64,
    pub(crate) seconds: f64,
    /// Zero if unknown.
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_megabytes: f64,
}

/// Figures of all rounds.
#[derive(Default)]
pub(crate) struct Report(BTreeMap<(Scenario, Path), Vec<Measured>>);

/// A figure and its goal.
struct Goal {
    what: String,
    value: Option<f64>,
    must: f64,
    least: bool,
}

impl Measured {
    fn rate(&self) -> f64 {
        self.records as f64 / self.seconds
    }
}

impl Report {
    /// Records a round and prints it.
    pub(crate) fn add(&mut self, scenario: Scenario, path: Path, measured: Measured) {
        println!(
            "{:<10} {path:<18} {:>9} {:>9.2} {:>12.0} {:>9.2} {:>9.0}",
            scenario.name(),
            measured.records,
            measured.seconds,
            measured.rate(),
            measured.cpu_seconds,
            measured.peak_megabytes
        );
        self.0.entry((scenario, path)).or_default().push(measured);
    }

    fn median(&self, scenario: Scenario, path: Path, figure: fn(&Measured) -> f64) -> Option<f64> {
        let mut figures: Vec<f64> = self.0.get(&(scenario, path))?.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied()
    }

    fn ratio(&self, scenario: Scenario, to: Path) -> Option<f64> {
        Some(
            self.median(scenario, Path::Tidings, Measured::rate)?
                / self.median(scenario, to, Measured::rate)?,
        )
    }

    fn goals(&self) -> Vec<Goal> {
        use Scenario::{
            Batch32, Batch100, EffectOnce, FewKeys, NoWork, OneMilli, SetBased, TenMilli,
        };
        let goal = |scenario: Scenario, what: &str, value, must, least| Goal {
            what: format!("{}: {what}", scenario.name()),
            value,
            must,
            least,
        };
        let rate = |scenario| self.median(scenario, Path::Tidings, Measured::rate);
        let parallel = |scenario| self.ratio(scenario, Path::Peer(Peer::ParallelConsumer));
        let pgbench = |scenario| self.ratio(scenario, Path::Pgbench);
        let mut goals = vec![
            goal(NoWork, "records/s", rate(NoWork), 700_000.0, true),
            goal(
                NoWork,
                "against Spring Kafka",
                self.ratio(NoWork, Path::Peer(Peer::SpringKafka)),
                3.0,
                true,
            ),
            goal(
                OneMilli,
                "against Parallel Consumer",
                parallel(OneMilli),
                3.0,
                true,
            ),
            goal(
                TenMilli,
                "against Parallel Consumer",
                parallel(TenMilli),
                2.0,
                true,
            ),
            goal(
                FewKeys,
                "against Parallel Consumer",
                parallel(FewKeys),
                2.5,
                true,
            ),
            goal(
                EffectOnce,
                "against pgbench with the same statements",
                pgbench(EffectOnce),
                0.85,
                true,
            ),
            goal(Batch32, "records/s", rate(Batch32), 26_000.0, true),
            goal(Batch100, "records/s", rate(Batch100), 34_000.0, true),
            goal(SetBased, "records/s", rate(SetBased), 80_000.0, true),
            goal(
                Batch32,
                "against pgbench with the same statements",
                pgbench(Batch32),
                0.85,
                true,
            ),
            goal(
                Batch100,
                "against pgbench with the same statements",
                pgbench(Batch100),
                0.85,
                true,
            ),
            goal(
                SetBased,
                "against pgbench with the same statements",
                pgbench(SetBased),
                0.85,
                true,
            ),
        ];
        goals.extend(
            self.0
                .keys()
                .filter(|(_, path)| *path == Path::Tidings)
                .map(|(scenario, path)| {
                    goal(
                        *scenario,
                        "peak memory, MB",
                        self.median(*scenario, *path, |measured| measured.peak_megabytes),
                        100.0,
                        false,
                    )
                }),
        );
        goals
    }

    /// Prints the medians and then the goals.
    pub(crate) fn print(&self) {
        println!(
            "\n| scenario | consumer | records/s | CPU µs/record | peak MB |\n|---|---|---|---|---|"
        );
        for (scenario, path) in self.0.keys().copied() {
            let shown = |figure: Option<f64>, digits: usize| match figure {
                Some(figure) if figure > 0.0 => format!("{figure:.digits$}"),
                _ => "–".to_owned(),
            };
            println!(
                "| {} | {path} | {} | {} | {} |",
                scenario.name(),
                shown(self.median(scenario, path, Measured::rate), 0),
                shown(
                    self.median(scenario, path, |measured| measured.cpu_seconds * 1e6
                        / measured.records as f64),
                    1
                ),
                shown(
                    self.median(scenario, path, |measured| measured.peak_megabytes),
                    0
                )
            );
        }
        println!("\n| figure | goal | measured | |\n|---|---|---|---|");
        for goal in self.goals() {
            let Some(value) = goal.value else { continue };
            let reached = if goal.least {
                value >= goal.must
            } else {
                value <= goal.must
            };
            let verdict = if reached { "reached" } else { "MISSED" };
            let sign = if goal.least { "≥" } else { "≤" };
            println!(
                "| {} | {sign} {} | {value:.2} | {verdict} |",
                goal.what, goal.must
            );
        }
    }
}

// === impl Display ===

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tidings => "Tidings",
            Self::Peer(Peer::ParallelConsumer) => "Parallel Consumer",
            Self::Peer(Peer::SpringKafka) => "Spring Kafka",
            Self::Pgbench => "pgbench",
            Self::Bare => "librdkafka alone",
            Self::Parsed => "… and serde_json",
        })
    }
}
