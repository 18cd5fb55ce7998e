//! The figures of a run, absolute and as ratios against what is asked.

use std::{collections::BTreeMap, fmt};

use crate::options::Scenario;
use crate::peers::Peer;

/// Who handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Path {
    Tidings,
    Peer(Peer),
    Pgbench,
}

/// One round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) records: u64,
    pub(crate) seconds: f64,
    /// Zero where it is not known.
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_megabytes: f64,
}

/// All rounds.
#[derive(Default)]
pub(crate) struct Report(BTreeMap<(Scenario, Path), Vec<Measured>>);

/// One figure beside what is asked of it.
struct Goal {
    what: String,
    value: Option<f64>,
    must: f64,
    aim: f64,
    least: bool,
}

impl Measured {
    fn rate(&self) -> f64 {
        self.records as f64 / self.seconds
    }
}

impl Report {
    /// Takes note of one round, and says so.
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
        Some(self.median(scenario, Path::Tidings, Measured::rate)? / self.median(scenario, to, Measured::rate)?)
    }

    fn goals(&self) -> Vec<Goal> {
        use Scenario::{EffectOnce, FewKeys, NoWork, OneMilli, TenMilli};
        let goal = |scenario: Scenario, what: &str, value, must, aim, least| Goal {
            what: format!("{}: {what}", scenario.name()),
            value,
            must,
            aim,
            least,
        };
        let parallel = |scenario| self.ratio(scenario, Path::Peer(Peer::ParallelConsumer));
        let spring = |scenario| self.ratio(scenario, Path::Peer(Peer::SpringKafka));
        let mut goals = vec![
            goal(NoWork, "records/s", self.median(NoWork, Path::Tidings, Measured::rate), 700_000.0, 900_000.0, true),
            goal(NoWork, "against Parallel Consumer", parallel(NoWork), 10.0, 20.0, true),
            goal(NoWork, "against Spring Kafka", spring(NoWork), 2.5, 3.5, true),
        ];
        for scenario in [OneMilli, TenMilli, FewKeys] {
            goals.push(goal(scenario, "against Parallel Consumer", parallel(scenario), 1.5, 2.0, true));
            let peak = self.median(scenario, Path::Tidings, |measured| measured.peak_megabytes);
            goals.push(goal(scenario, "peak memory, MB", peak, 100.0, 60.0, false));
        }
        goals.push(goal(EffectOnce, "against pgbench with the same statements", self.ratio(EffectOnce, Path::Pgbench), 0.7, 0.9, true));
        goals
    }

    /// Prints the medians, then what is asked.
    pub(crate) fn print(&self) {
        println!("\n| scenario | who | records/s | CPU µs a record | peak MB |\n|---|---|---|---|---|");
        for (scenario, path) in self.0.keys().copied() {
            let shown = |figure: Option<f64>, digits: usize| match figure {
                Some(figure) if figure > 0.0 => format!("{figure:.digits$}"),
                _ => "–".to_owned(),
            };
            println!(
                "| {} | {path} | {} | {} | {} |",
                scenario.name(),
                shown(self.median(scenario, path, Measured::rate), 0),
                shown(self.median(scenario, path, |measured| measured.cpu_seconds * 1e6 / measured.records as f64), 1),
                shown(self.median(scenario, path, |measured| measured.peak_megabytes), 0)
            );
        }
        println!("\n| asked | must | aim | measured | |\n|---|---|---|---|---|");
        for goal in self.goals() {
            let Some(value) = goal.value else { continue };
            let reached = |bound: f64| if goal.least { value >= bound } else { value <= bound };
            let verdict = match (reached(goal.must), reached(goal.aim)) {
                (_, true) => "aim reached",
                (true, false) => "must reached",
                (false, false) => "MISSED",
            };
            let sign = if goal.least { "≥" } else { "≤" };
            println!("| {} | {sign} {} | {sign} {} | {value:.2} | {verdict} |", goal.what, goal.must, goal.aim);
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
        })
    }
}
