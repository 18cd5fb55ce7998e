//! Human-readable report of a history.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::super::report::conclude;
use super::checker::{Hostile, Tally, Verdict};
use super::plan::Plan;
use super::schedule::Kind;

/// A history and its verdict.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) plan: Plan,
    pub(crate) lasted: Duration,
    pub(crate) faults: BTreeMap<Kind, usize>,
    pub(crate) kills: usize,
    pub(crate) releases: u32,
    pub(crate) verdict: Verdict,
    /// The relay that stopped and needs an operator, with the last line of its log.
    pub(crate) refusal: Option<String>,
    /// Members that exited by themselves or did not stop in order.
    pub(crate) ended: Vec<String>,
    /// The remaining work when the state stopped changing.
    pub(crate) left: Option<String>,
    /// The last lines of every log.
    pub(crate) log_ends: String,
}

impl Report {
    /// Returns a description of each broken guarantee.
    pub(crate) fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut promise = |count: usize, what: &str| {
            if count > 0 {
                broken.push(format!("{count} {what}"));
            }
        };
        let Verdict {
            ledger,
            shop,
            orders,
            hostile,
            ..
        } = &self.verdict;
        for (name, tally) in [("bookings", ledger), ("commands", shop)] {
            promise(tally.lost, &format!("{name} without effect"));
            promise(tally.repeated, &format!("{name} with several effects"));
            promise(tally.out_of_order, &format!("{name} out of order"));
            promise(
                tally.never_committed,
                &format!("effects of {name} that were never committed"),
            );
            promise(
                tally.dead,
                &format!("{name} are dead, and no handler was ordered to fail"),
            );
        }
        promise(orders.open, "orders without the end of their saga");
        promise(orders.failed, "sagas failed");
        promise(
            orders.unbalanced,
            "orders whose stock, money or parcels do not balance",
        );
        promise(
            hostile.values().map(|hostile| hostile.unaccounted).sum(),
            "hostile records without the promised end",
        );
        promise(
            self.verdict.strange_letters,
            "dead letters of no known record",
        );
        promise(self.verdict.parked, "events still parked");
        promise(self.verdict.anomalies, "observations that must not happen");
        promise(
            self.verdict.unfinished,
            "partitions whose offsets are not at the end",
        );
        promise(
            usize::try_from(self.verdict.miscounted).unwrap_or(usize::MAX),
            "skipped records not counted, or counted twice",
        );
        broken.extend(self.refusal.iter().cloned());
        broken.extend(self.ended.iter().cloned());
        broken.extend(
            self.left
                .iter()
                .map(|left| format!("not handled at the end: {left}")),
        );
        if ledger.committed == 0 || orders.completed == 0 {
            broken.push("nothing was committed: the test is no test".to_owned());
        }
        broken
    }
}

// === impl Display ===

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, kills) = (self.lasted.as_secs(), self.kills);
        // Kills during other faults are not steps of the schedule, so `kills` replaces the count of
        // steps.
        let count = self
            .faults
            .iter()
            .filter(|(kind, _)| **kind != Kind::Kill)
            .map(|(_, count)| count)
            .sum::<usize>()
            + kills;
        let Plan { seed, members, .. } = &self.plan;
        writeln!(
            f,
            "seed {seed}: {members} members, {seconds} s, {count} faults, {kills} times kill -9, \
             {} releases",
            self.releases + 1
        )?;
        let faults: Vec<_> = self
            .faults
            .iter()
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        writeln!(f, "faults: {}", faults.join(", "))?;
        let columns = [
            "committed",
            "effects",
            "lost",
            "repeated",
            "misordered",
            "overtaken",
            "strange",
            "dead",
            "retried",
        ];
        writeln!(
            f,
            "{:<10}{}",
            "events",
            columns.map(|column| format!("{column:>11}")).concat()
        )?;
        for (name, tally) in [
            ("bookings", &self.verdict.ledger),
            ("commands", &self.verdict.shop),
        ] {
            let Tally {
                committed,
                effects,
                lost,
                repeated,
                out_of_order,
                overtaken,
                never_committed,
                dead,
                retried,
            } = tally;
            let numbers = [
                committed,
                effects,
                lost,
                repeated,
                out_of_order,
                overtaken,
                never_committed,
                dead,
                retried,
            ];
            writeln!(
                f,
                "{name:<10}{}",
                numbers.map(|number| format!("{number:>11}")).concat()
            )?;
        }
        let orders = &self.verdict.orders;
        writeln!(
            f,
            "orders: {} completed, {} cancelled, {} of these because a step was late; {} open, \
             {} failed, {} unbalanced",
            orders.completed,
            orders.cancelled,
            orders.late,
            orders.open,
            orders.failed,
            orders.unbalanced
        )?;
        for (hostility, hostile) in &self.verdict.hostile {
            let Hostile {
                sent,
                letters,
                parked,
                skipped,
                handled,
                unaccounted,
            } = hostile;
            writeln!(
                f,
                "hostile: {sent:>4} {hostility}: {letters} letters, {parked} parked, \
                 {skipped} skipped, {handled} handled, \
                 {unaccounted} unaccounted"
            )?;
        }
        for example in &self.verdict.examples {
            writeln!(f, "  {example}")?;
        }
        conclude(f, &self.broken(), &self.log_ends, &self.plan.command())
    }
}

#[cfg(test)]
mod tests {
    use super::super::checker::Orders;
    use super::super::hostile::Hostility;
    use super::*;

    fn report(change: impl FnOnce(&mut Report)) -> Report {
        let good = Tally {
            committed: 9,
            effects: 9,
            ..Tally::default()
        };
        let orders = Orders {
            completed: 2,
            ..Orders::default()
        };
        let mut report = Report {
            plan: Plan::parse(["--seed", "77"]).expect("good words"),
            lasted: Duration::ZERO,
            faults: BTreeMap::from([(Kind::Kill, 1)]),
            kills: 1,
            releases: 2,
            verdict: Verdict {
                ledger: good,
                shop: good,
                orders,
                ..Verdict::default()
            },
            refusal: None,
            ended: Vec::new(),
            left: None,
            log_ends: String::new(),
        };
        change(&mut report);
        report
    }

    #[test]
    fn each_fault_breaks_a_promise_and_what_is_no_fault_does_not() {
        assert!(report(|_| ()).broken().is_empty());
        assert!(
            report(|r| (r.verdict.ledger.overtaken, r.verdict.orders.late) = (3, 4))
                .broken()
                .is_empty()
        );
        let faults: [fn(&mut Report); 20] = [
            |r| r.verdict.ledger.lost = 1,
            |r| r.verdict.shop.repeated = 1,
            |r| r.verdict.ledger.out_of_order = 1,
            |r| r.verdict.shop.never_committed = 1,
            |r| r.verdict.ledger.dead = 1,
            |r| r.verdict.orders.open = 1,
            |r| r.verdict.orders.failed = 1,
            |r| r.verdict.orders.unbalanced = 1,
            |r| {
                r.verdict
                    .hostile
                    .entry(Hostility::Forged)
                    .or_default()
                    .unaccounted = 1
            },
            |r| r.verdict.strange_letters = 1,
            |r| r.verdict.parked = 1,
            |r| r.verdict.anomalies = 1,
            |r| r.verdict.unfinished = 1,
            |r| r.verdict.miscounted = 1,
            |r| r.refusal = Some("a relay stopped".into()),
            |r| r.ended.push("a member ended by itself".into()),
            |r| r.left = Some("1 parked".into()),
            |r| r.verdict.ledger.committed = 0,
            |r| r.verdict.orders.completed = 0,
            |r| r.verdict.shop.dead = 1,
        ];
        for (at, fault) in faults.into_iter().enumerate() {
            assert_eq!(report(fault).broken().len(), 1, "fault {at}");
        }
    }

    #[test]
    fn a_broken_history_reports_how_it_is_replayed() {
        let text = report(|r| r.verdict.ledger.lost = 1).to_string();
        assert!(
            text.contains("BROKEN: 1 bookings without effect")
                && text.contains("chaos -- inbound --seed 77 "),
            "{text}"
        );
    }
}
