//! Human-readable report of a history.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::checker::{Tally, Verdict};
use super::plan::Plan;
use super::schedule::Kind;

/// A history and its verdict.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) plan: Plan,
    pub(crate) lasted: Duration,
    pub(crate) faults: BTreeMap<Kind, usize>,
    pub(crate) kills: usize,
    pub(crate) verdict: Verdict,
    /// The relay that stopped and needs an operator, with the last line of its log.
    pub(crate) refusal: Option<String>,
    /// The end of every relay's log.
    pub(crate) log_ends: String,
}

impl Report {
    /// Returns a description of each broken guarantee. Returns an empty list if all hold.
    pub(crate) fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut promise = |count: usize, what: &str| {
            if count > 0 {
                broken.push(format!("{count} {what}"));
            }
        };
        let Verdict { locked, early, .. } = &self.verdict;
        if self
            .faults
            .get(&Kind::FailOverWithLoss)
            .is_some_and(|count| *count > 0)
        {
            // An event that Kafka has and the database has lost cannot be revoked. A relay must
            // report it and stop until an operator has acted.
            let unsaid = if self.refusal.is_none() {
                locked.never_committed + early.never_committed + locked.lost + early.lost
            } else {
                0
            };
            promise(
                unsaid,
                "lost by Postgres or by the relay, and no relay said so",
            );
            return broken;
        }
        for (tally, order) in [
            (locked, self.order_of_locks()),
            (early, self.order_of_commits()),
        ] {
            promise(
                if self.stopped_rightly() {
                    0
                } else {
                    tally.lost
                },
                "lost",
            );
            promise(tally.never_committed, "never committed");
            promise(tally.wrong_partition, "in the wrong partition");
            promise(if order { tally.out_of_order } else { 0 }, "out of order");
            promise(
                if self.plan.repeats() {
                    0
                } else {
                    tally.repeated
                },
                "repeated",
            );
        }
        broken.extend(
            self.refusal
                .iter()
                .filter(|_| !self.stopped_rightly())
                .cloned(),
        );
        if locked.committed == 0 || early.committed == 0 {
            broken.push("nothing was committed: the test is no test".to_owned());
        }
        broken
    }

    /// Returns whether a relay stopped because the publication leaves inserts out. A relay with
    /// `--source wal` must stop at its start in this case. The events that wait in the outbox are
    /// not lost.
    fn stopped_rightly(&self) -> bool {
        let log_alone = self.plan.source == "wal" || self.has_any(&[Kind::SwitchSource]);
        let said = self
            .refusal
            .as_ref()
            .is_some_and(|refusal| refusal.contains("leaves inserts out"));
        said && log_alone && self.has_any(&[Kind::NarrowPublication])
    }

    /// Returns whether any order is guaranteed. Events that a publication left out are delivered
    /// after later events of their aggregate.
    fn order_of_locks(&self) -> bool {
        !self.has_any(&[Kind::NarrowPublication, Kind::DropPublication])
    }

    /// Returns whether the order of commits is guaranteed even for writers that publish first. Only
    /// the WAL gives this order. It does not hold for events that are read from the table after a
    /// slot was lost, nor for parked events.
    fn order_of_commits(&self) -> bool {
        let by_seq = [
            Kind::DropSlot,
            Kind::SwitchSource,
            Kind::FailOver,
            Kind::SmallMessages,
        ];
        self.plan.source == "wal" && self.order_of_locks() && !self.has_any(&by_seq)
    }

    fn has_any(&self, kinds: &[Kind]) -> bool {
        self.plan.faults.iter().any(|kind| kinds.contains(kind))
    }
}

// === impl Display ===

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan {
            seed,
            source,
            delivery,
            relays,
            brokers,
            ..
        } = &self.plan;
        let (seconds, kills) = (self.lasted.as_secs(), self.kills);
        writeln!(
            f,
            "seed {seed}: {source}, {delivery}, {relays} relay(s), {brokers} broker(s), \
             {seconds} s, {kills} times kill -9"
        )?;
        let faults: Vec<_> = self
            .faults
            .iter()
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        writeln!(f, "faults: {}", faults.join(", "))?;
        writeln!(
            f,
            "{:<15}{:>10}{:>10}{:>6}{:>9}{:>13}{:>16}{:>16}",
            "writers",
            "committed",
            "delivered",
            "lost",
            "repeated",
            "out of order",
            "never committed",
            "wrong partition"
        )?;
        for (name, tally) in [
            ("lock, publish", &self.verdict.locked),
            ("publish, lock", &self.verdict.early),
        ] {
            let Tally {
                committed,
                delivered,
                lost,
                repeated,
                out_of_order,
                never_committed,
                wrong_partition,
            } = tally;
            writeln!(
                f,
                "{name:<15}{committed:>10}{delivered:>10}{lost:>6}{repeated:>9}\
                 {out_of_order:>13}{never_committed:>16}{wrong_partition:>16}"
            )?;
        }
        for example in &self.verdict.examples {
            writeln!(f, "  {example}")?;
        }
        conclude(f, &self.broken(), &self.log_ends, &self.plan.command())
    }
}

/// Writes the end of a report: whether every guarantee holds, or the logs, the broken guarantees
/// and the command that replays the history.
pub(crate) fn conclude(
    f: &mut fmt::Formatter<'_>,
    broken: &[String],
    log_ends: &str,
    command: &str,
) -> fmt::Result {
    if broken.is_empty() {
        return f.write_str("holds");
    }
    let broken = broken.join("; ");
    write!(f, "{log_ends}\nBROKEN: {broken}\nreplay: {command}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(words: &str, locked: Tally, early: Tally) -> Report {
        let plan = Plan::parse(words.split(' ')).expect("good words");
        let verdict = Verdict {
            locked,
            early,
            examples: Vec::new(),
        };
        Report {
            plan,
            lasted: Duration::ZERO,
            faults: BTreeMap::from([(Kind::Kill, 1)]),
            kills: 1,
            verdict,
            refusal: None,
            log_ends: String::new(),
        }
    }

    #[test]
    fn what_is_promised_depends_on_the_delivery_and_on_the_source() {
        let good = Tally {
            committed: 9,
            delivered: 9,
            ..Tally::default()
        };
        let faults: [(&str, Tally, Tally, &[&str]); 13] = [
            (
                "--delivery at-least-once",
                Tally {
                    repeated: 1,
                    ..good
                },
                good,
                &[],
            ),
            (
                "--delivery exactly-once",
                Tally {
                    repeated: 1,
                    ..good
                },
                good,
                &["1 repeated"],
            ),
            (
                "--delivery at-least-once",
                Tally {
                    out_of_order: 2,
                    ..good
                },
                good,
                &["2 out of order"],
            ),
            (
                "--source wal --faults kill",
                good,
                Tally {
                    out_of_order: 3,
                    ..good
                },
                &["3 out of order"],
            ),
            (
                "--source wal --faults kill,small-messages",
                good,
                Tally {
                    out_of_order: 3,
                    ..good
                },
                &[],
            ),
            (
                "--source wal --faults kill,small-messages",
                Tally {
                    out_of_order: 2,
                    ..good
                },
                good,
                &["2 out of order"],
            ),
            (
                "--faults kill,narrow-publication",
                Tally {
                    out_of_order: 2,
                    ..good
                },
                Tally {
                    out_of_order: 3,
                    ..good
                },
                &[],
            ),
            (
                "--source wal --faults drop-publication",
                Tally {
                    out_of_order: 2,
                    ..good
                },
                Tally {
                    out_of_order: 3,
                    ..good
                },
                &[],
            ),
            (
                "--faults narrow-publication",
                Tally {
                    repeated: 1,
                    lost: 1,
                    ..good
                },
                good,
                &["1 lost", "1 repeated"],
            ),
            (
                "--source poll",
                good,
                Tally {
                    out_of_order: 3,
                    ..good
                },
                &[],
            ),
            (
                "--source poll",
                good,
                Tally {
                    lost: 4,
                    never_committed: 5,
                    ..good
                },
                &["4 lost", "5 never committed"],
            ),
            (
                "--source wal",
                Tally {
                    wrong_partition: 6,
                    ..good
                },
                good,
                &["6 in the wrong partition"],
            ),
            (
                "--source wal",
                good,
                Tally::default(),
                &["nothing was committed: the test is no test"],
            ),
        ];
        for (words, locked, early, broken) in faults {
            assert_eq!(report(words, locked, early).broken(), broken, "{words}");
        }
    }

    #[test]
    fn commits_that_postgres_lost_have_to_be_said_and_nothing_else() {
        let bad = Tally {
            committed: 9,
            delivered: 9,
            lost: 1,
            never_committed: 2,
            ..Tally::default()
        };
        let mut report = report(
            "--source wal",
            bad,
            Tally {
                committed: 9,
                ..Tally::default()
            },
        );
        report.faults.insert(Kind::FailOverWithLoss, 1);
        assert_eq!(
            report.broken(),
            ["3 lost by Postgres or by the relay, and no relay said so"]
        );
        report.refusal = Some("a relay stopped and needs an operator: …".to_owned());
        assert!(report.broken().is_empty());
    }

    #[test]
    fn a_relay_of_the_log_alone_may_stop_if_the_publication_leaves_inserts_out_and_no_other() {
        let some = Tally {
            committed: 9,
            delivered: 4,
            lost: 5,
            ..Tally::default()
        };
        let refusal = Some(
            "a relay stopped and needs an operator: \
                            publication `tidings_chaos_0a1b2c3d` leaves inserts out"
                .to_owned(),
        );
        let stopped = |words: &str, tally| Report {
            refusal: refusal.clone(),
            ..report(
                words,
                tally,
                Tally {
                    committed: 9,
                    ..Tally::default()
                },
            )
        };
        assert!(
            stopped("--source wal --faults narrow-publication", some)
                .broken()
                .is_empty()
        );
        let repeated = Tally {
            repeated: 1,
            ..some
        };
        assert_eq!(
            stopped("--source wal --faults narrow-publication", repeated).broken(),
            ["1 repeated"]
        );
        assert_eq!(
            stopped("--source auto --faults narrow-publication", some).broken()[0],
            "5 lost"
        );
    }

    #[test]
    fn a_broken_history_says_how_it_is_replayed() {
        let bad = report(
            "--seed 77",
            Tally {
                committed: 1,
                lost: 1,
                ..Tally::default()
            },
            Tally {
                committed: 1,
                ..Tally::default()
            },
        );
        let text = bad.to_string();
        assert!(
            text.contains("BROKEN: 1 lost")
                && text.contains("replay: cargo run --release --example chaos -- --seed 77 "),
            "{text}"
        );
    }
}
