//! Comparison of the consumed records with the events committed in Postgres.
//!
//! The functions are pure. The tests below plant each kind of fault and verify that it is found.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::committed::Committed;
use super::murmur2;
use super::topic::Record;

/// The prefix of the accounts whose writers publish before they lock.
pub(crate) const EARLY: &str = "early";

/// The maximum number of faults that are described individually.
const EXAMPLES_MAX: usize = 12;

/// The findings about one kind of writer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) committed: usize,
    pub(crate) delivered: usize,
    pub(crate) lost: usize,
    pub(crate) repeated: usize,
    pub(crate) out_of_order: usize,
    pub(crate) never_committed: usize,
    pub(crate) wrong_partition: usize,
}

/// The findings about all writers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Writers that lock the aggregate before they publish.
    pub(crate) locked: Tally,
    /// Writers that publish before they lock. The contract guarantees no order for them.
    pub(crate) early: Tally,
    /// Descriptions of the first faults, without repeats.
    pub(crate) examples: Vec<String>,
}

impl Verdict {
    fn of(&mut self, account: &str) -> &mut Tally {
        if account.starts_with(EARLY) {
            &mut self.early
        } else {
            &mut self.locked
        }
    }

    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(text());
        }
    }
}

/// Checks all records of all topics. The records of each partition must be in order.
///
/// Only the first occurrence of an event counts for the order. A repeat is counted only as a
/// repeat.
pub(crate) fn judge(committed: &Committed, records: &[Record], partitions: i32) -> Verdict {
    let mut verdict = Verdict::default();
    for event in committed.events.values() {
        verdict.of(&event.account).committed += 1;
    }
    let mut seen = HashSet::new();
    // The highest delivered version of each account.
    let mut reached: HashMap<Arc<str>, i64> = HashMap::new();
    for record in records {
        verdict.of(&record.key).delivered += 1;
        let belongs = murmur2::partition(&record.key, partitions);
        if record.partition != belongs {
            verdict.of(&record.key).wrong_partition += 1;
            verdict.example(|| format!("{record} belongs to partition {belongs}"));
        }
        let Some(event) = committed
            .events
            .get(&record.mark)
            .filter(|event| *event.account == *record.key)
        else {
            verdict.of(&record.key).never_committed += 1;
            verdict.example(|| format!("{record} was never committed"));
            continue;
        };
        if !seen.insert(record.mark) {
            verdict.of(&record.key).repeated += 1;
            continue;
        }
        let last = reached.entry(Arc::clone(&event.account)).or_default();
        if event.version < *last {
            let (version, last) = (event.version, *last);
            verdict.of(&record.key).out_of_order += 1;
            verdict.example(|| format!("{record}, version {version}, follows version {last}"));
        } else {
            *last = event.version;
        }
    }
    lost(committed, &seen, &mut verdict);
    verdict
}

fn lost(committed: &Committed, seen: &HashSet<uuid::Uuid>, verdict: &mut Verdict) {
    let mut lost: Vec<_> = committed
        .events
        .iter()
        .filter(|(mark, _)| !seen.contains(mark))
        .collect();
    lost.sort_by_key(|(_, event)| (&event.account, event.version));
    for (mark, event) in lost {
        verdict.of(&event.account).lost += 1;
        verdict.example(|| {
            format!(
                "{} version {} ({mark}) is lost",
                event.account, event.version
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::committed::Event;
    use super::*;

    const PARTITIONS: i32 = 5;

    fn mark(account: &str, version: i64) -> Uuid {
        Uuid::from_u64_pair(
            account
                .bytes()
                .fold(7, |hash, byte| hash * 31 + u64::from(byte)),
            version.cast_unsigned(),
        )
    }

    fn record(account: &str, version: i64) -> Record {
        let partition = murmur2::partition(account, PARTITIONS);
        Record {
            topic: "t".into(),
            partition,
            offset: 0,
            key: account.into(),
            mark: mark(account, version),
        }
    }

    /// Three versions of account `a`, and two of an account whose writers publish first.
    fn committed() -> Committed {
        let steps = [("a", 1), ("a", 2), ("a", 3), ("early-1", 1), ("early-1", 2)];
        let event = |(account, version): (&str, i64)| {
            (
                mark(account, version),
                Event {
                    account: account.into(),
                    version,
                },
            )
        };
        Committed {
            events: steps.into_iter().map(event).collect(),
        }
    }

    fn good() -> Vec<Record> {
        vec![
            record("a", 1),
            record("early-1", 1),
            record("a", 2),
            record("early-1", 2),
            record("a", 3),
        ]
    }

    const LOCKED: Tally = Tally {
        committed: 3,
        delivered: 3,
        lost: 0,
        repeated: 0,
        out_of_order: 0,
        never_committed: 0,
        wrong_partition: 0,
    };
    const EARLY_TWO: Tally = Tally {
        committed: 2,
        delivered: 2,
        ..LOCKED
    };

    fn judged(records: &[Record]) -> (Tally, Tally) {
        let verdict = judge(&committed(), records, PARTITIONS);
        (verdict.locked, verdict.early)
    }

    #[test]
    fn a_good_history_has_no_fault() {
        assert_eq!(judged(&good()), (LOCKED, EARLY_TWO));
    }

    #[test]
    fn a_lost_event_is_seen_and_does_not_make_later_ones_misordered() {
        let mut records = good();
        records.remove(2);
        assert_eq!(
            judged(&records),
            (
                Tally {
                    delivered: 2,
                    lost: 1,
                    ..LOCKED
                },
                EARLY_TWO
            )
        );
        assert_eq!(
            judged(&[]).1,
            Tally {
                delivered: 0,
                lost: 2,
                ..EARLY_TWO
            }
        );
    }

    #[test]
    fn a_repeat_is_a_repeat_and_not_misordered() {
        let mut records = good();
        records.extend([record("a", 2), record("a", 3)]);
        assert_eq!(
            judged(&records),
            (
                Tally {
                    delivered: 5,
                    repeated: 2,
                    ..LOCKED
                },
                EARLY_TWO
            )
        );
    }

    #[test]
    fn two_events_in_the_wrong_order_are_seen_by_whose_they_are() {
        let mut records = good();
        records.swap(0, 2);
        assert_eq!(
            judged(&records),
            (
                Tally {
                    out_of_order: 1,
                    ..LOCKED
                },
                EARLY_TWO
            )
        );
        let mut records = good();
        records.swap(1, 3);
        assert_eq!(
            judged(&records),
            (
                LOCKED,
                Tally {
                    out_of_order: 1,
                    ..EARLY_TWO
                }
            )
        );
    }

    #[test]
    fn an_event_that_was_rolled_back_is_seen_even_if_its_version_was_committed_by_another() {
        let mut records = good();
        records.insert(
            1,
            Record {
                mark: Uuid::from_u128(1),
                ..record("a", 1)
            },
        );
        assert_eq!(
            judged(&records),
            (
                Tally {
                    delivered: 4,
                    never_committed: 1,
                    ..LOCKED
                },
                EARLY_TWO
            )
        );
    }

    #[test]
    fn an_event_under_another_accounts_key_is_not_that_event() {
        let mut records = good();
        records[0] = Record {
            key: "b".into(),
            partition: murmur2::partition("b", PARTITIONS),
            ..records[0].clone()
        };
        assert_eq!(
            judged(&records),
            (
                Tally {
                    lost: 1,
                    never_committed: 1,
                    ..LOCKED
                },
                EARLY_TWO
            )
        );
    }

    #[test]
    fn a_record_in_a_partition_that_is_not_its_keys_is_seen() {
        let mut records = good();
        records[4].partition = (records[4].partition + 1) % PARTITIONS;
        assert_eq!(
            judged(&records),
            (
                Tally {
                    wrong_partition: 1,
                    ..LOCKED
                },
                EARLY_TWO
            )
        );
    }

    #[test]
    fn faults_are_told_with_what_they_are_about() {
        let verdict = judge(&committed(), &good()[..4], PARTITIONS);
        assert_eq!(
            verdict.examples,
            [format!("a version 3 ({}) is lost", mark("a", 3))]
        );
    }
}
