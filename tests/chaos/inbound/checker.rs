//! Comparison of the effects with the committed events.
//!
//! The functions are pure. The tests below plant each kind of fault and verify that it is found.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::events::LEDGER;
use super::evidence::{Evidence, Order};
use super::hostile::{End, Hostility};

/// The maximum number of faults that are described individually.
const EXAMPLES_MAX: usize = 20;

/// The number of failing attempts from which a release may escalate an event of the ledger. If a
/// member is killed, an event that is dead or waits in a retry topic may be read again after later
/// events of its aggregate.
const ESCALATED_FROM: i32 = 2;

/// The findings about the events of one subscriber.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) committed: usize,
    pub(crate) effects: usize,
    pub(crate) lost: usize,
    pub(crate) repeated: usize,
    pub(crate) out_of_order: usize,
    /// Effects of events from a retry topic or a replay, or of events that may have been escalated.
    /// These have no guaranteed order.
    pub(crate) overtaken: usize,
    pub(crate) never_committed: usize,
    /// Dead events that no handler had to fail.
    pub(crate) dead: usize,
    /// Events that needed several attempts although no handler had to fail.
    pub(crate) retried: usize,
}

/// The findings about orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    pub(crate) completed: usize,
    pub(crate) cancelled: usize,
    /// Orders that were cancelled although no service refused them, because a step timed out.
    pub(crate) late: usize,
    /// Orders without an outcome, or with one that differs from the saga's.
    pub(crate) open: usize,
    pub(crate) failed: usize,
    /// Orders whose stock, money or parcels do not match the outcome.
    pub(crate) unbalanced: usize,
}

/// The findings about hostile records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hostile {
    pub(crate) sent: usize,
    pub(crate) letters: usize,
    pub(crate) parked: usize,
    pub(crate) skipped: usize,
    pub(crate) handled: usize,
    /// Records with another outcome than the guaranteed one, or with none.
    pub(crate) unaccounted: usize,
}

/// All findings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) ledger: Tally,
    pub(crate) shop: Tally,
    pub(crate) orders: Orders,
    pub(crate) hostile: BTreeMap<Hostility, Hostile>,
    /// Letters that belong to neither a hostile record nor a committed event.
    pub(crate) strange_letters: usize,
    /// Parked events of publishers.
    pub(crate) parked: usize,
    pub(crate) anomalies: usize,
    pub(crate) unfinished: usize,
    /// Skipped records of the closing round that were not counted or were counted twice.
    pub(crate) miscounted: u64,
    /// Descriptions of the first faults.
    pub(crate) examples: Vec<String>,
}

impl Verdict {
    fn tally(&mut self, is_ledger: bool) -> &mut Tally {
        if is_ledger {
            &mut self.ledger
        } else {
            &mut self.shop
        }
    }

    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(text());
        }
    }
}

/// Checks all effects. The effects of each aggregate must be in order.
///
/// Only the first occurrence of an event counts for the order. A repeat is counted only as a
/// repeat.
pub(crate) fn judge(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    effects(evidence, &mut verdict);
    letters(evidence, &mut verdict);
    for order in &evidence.orders {
        if let Some(fault) = judge_order(order, &mut verdict.orders) {
            verdict.example(|| fault);
        }
    }
    hostile(evidence, &mut verdict);
    verdict.anomalies = evidence.anomalies.len();
    verdict.unfinished = evidence.unfinished.len();
    let (to_skip, counted) = evidence.skipped;
    verdict.miscounted = to_skip.abs_diff(counted);
    if verdict.miscounted > 0 {
        verdict.example(|| {
            format!("the closing round has {to_skip} records to skip, and {counted} were counted")
        });
    }
    for text in evidence.anomalies.iter().chain(&evidence.unfinished) {
        verdict.example(|| text.clone());
    }
    verdict
}

fn effects(evidence: &Evidence, verdict: &mut Verdict) {
    let is_ledger = |aggregate: &str| aggregate.starts_with(LEDGER);
    for event in evidence.committed.values() {
        verdict.tally(is_ledger(&event.aggregate)).committed += 1;
    }
    let (mut seen, mut reached) = (HashSet::new(), HashMap::<Arc<str>, i64>::new());
    for effect in evidence
        .effects
        .iter()
        .filter(|effect| effect.mark.is_none())
    {
        let Some(event) = evidence.committed.get(&effect.event_id) else {
            verdict.tally(&*effect.consumer == LEDGER).never_committed += 1;
            verdict.example(|| {
                format!(
                    "event {} has an effect and was never committed",
                    effect.event_id
                )
            });
            continue;
        };
        let tally = verdict.tally(is_ledger(&event.aggregate));
        tally.effects += 1;
        if !seen.insert(effect.event_id.as_str()) {
            tally.repeated += 1;
            verdict.example(|| {
                format!(
                    "{} version {} ({}) has another effect",
                    event.aggregate, event.version, effect.event_id
                )
            });
            continue;
        }
        if event.fails == 0 && effect.attempt > 1 {
            tally.retried += 1;
        }
        if effect.topic != event.topic
            || is_ledger(&event.aggregate) && event.fails >= ESCALATED_FROM
        {
            tally.overtaken += 1;
            continue;
        }
        let last = reached.entry(Arc::clone(&event.aggregate)).or_default();
        if event.version < *last {
            let (version, last) = (event.version, *last);
            tally.out_of_order += 1;
            verdict.example(|| {
                format!(
                    "{} version {version} ({}) follows version {last}",
                    event.aggregate, effect.event_id
                )
            });
        } else {
            *last = event.version;
        }
    }
    let mut lost: Vec<_> = evidence
        .committed
        .iter()
        .filter(|(id, _)| !seen.contains(id.as_str()))
        .collect();
    lost.sort_by_key(|(_, event)| (&event.aggregate, event.version));
    for (id, event) in lost {
        verdict.tally(is_ledger(&event.aggregate)).lost += 1;
        verdict.example(|| {
            format!(
                "{} version {} ({id}) has no effect",
                event.aggregate, event.version
            )
        });
    }
}

/// Checks the letters that do not belong to hostile records.
fn letters(evidence: &Evidence, verdict: &mut Verdict) {
    for letter in evidence
        .letters
        .iter()
        .filter(|letter| letter.mark.is_none())
    {
        let event = letter
            .event_id
            .as_ref()
            .and_then(|id| evidence.committed.get(id));
        match event {
            Some(event) if event.fails > 0 => continue,
            Some(event) => verdict.tally(event.aggregate.starts_with(LEDGER)).dead += 1,
            None => verdict.strange_letters += 1,
        }
        verdict.example(|| {
            format!(
                "{}/{}/{} is a dead letter: {}",
                letter.topic, letter.partition, letter.offset, letter.reason
            )
        });
    }
}

/// Returns a description of the fault of an order. Returns `None` if it has none.
fn judge_order(order: &Order, orders: &mut Orders) -> Option<String> {
    let Order {
        id,
        quantity,
        cents,
        refused_by,
        status,
        stock,
        money,
        parcels,
        audits,
        saga,
    } = order;
    let (outcome, moved) = match status.as_str() {
        "completed" => {
            orders.completed += 1;
            ("completed", (-quantity, *cents, 1))
        }
        "cancelled" => {
            orders.cancelled += 1;
            orders.late += usize::from(refused_by.is_empty());
            ("compensated", (0, 0, 0))
        }
        _ => {
            orders.open += 1;
            return Some(format!("order {id} is {status}, and its saga {saga:?}"));
        }
    };
    if saga.as_deref() == Some("failed") {
        orders.failed += 1;
        return Some(format!(
            "the saga of order {id} failed, and the order is {status}"
        ));
    }
    if saga.as_deref() != Some(outcome) {
        orders.open += 1;
        return Some(format!("order {id} is {status}, and its saga {saga:?}"));
    }
    let is_refused = outcome == "completed" && !refused_by.is_empty();
    if (*stock, *money, *parcels) != moved || *audits > 1 || is_refused {
        orders.unbalanced += 1;
        return Some(format!(
            "order {id} of {quantity} for {cents} is {status}, refused by {refused_by:?}: \
             stock {stock}, money {money}, parcels {parcels}, \
             audits {audits}"
        ));
    }
    None
}

fn hostile(evidence: &Evidence, verdict: &mut Verdict) {
    let letters = evidence
        .letters
        .iter()
        .filter_map(|letter| letter.mark.as_deref())
        .collect::<HashSet<_>>();
    let letters = counts(letters.into_iter());
    let handled = counts(
        evidence
            .effects
            .iter()
            .filter_map(|effect| effect.mark.as_deref()),
    );
    let parked = counts(evidence.parked.iter().map(String::as_str));
    for sent in &evidence.hostile {
        let count =
            |of: &HashMap<&str, usize>| of.get(sent.mark.as_str()).copied().unwrap_or_default();
        let (letters, handled, parked) = (count(&letters), count(&handled), count(&parked));
        let tally = verdict.hostile.entry(sent.hostility).or_default();
        tally.sent += 1;
        tally.letters += letters;
        tally.handled += handled;
        tally.parked += parked;
        let is_promised = match sent.hostility.end(&sent.topic) {
            End::Letter => letters + parked == 1 && handled == 0,
            End::Skipped => letters + parked + handled == 0,
            End::Handled => handled == 1 && letters + parked == 0,
        };
        tally.skipped += usize::from(letters + parked + handled == 0 && is_promised);
        if !is_promised {
            tally.unaccounted += 1;
            verdict.example(|| {
                format!(
                    "{sent} has {letters} letters, {handled} effects and is parked {parked} times"
                )
            });
        }
    }
    let sent: HashSet<_> = evidence
        .hostile
        .iter()
        .map(|sent| sent.mark.as_str())
        .collect();
    for text in evidence
        .parked
        .iter()
        .filter(|text| !sent.contains(text.as_str()))
    {
        verdict.parked += 1;
        verdict.example(|| format!("parked: {text}"));
    }
}

fn counts<'m>(marks: impl Iterator<Item = &'m str>) -> HashMap<&'m str, usize> {
    marks.fold(HashMap::new(), |mut counts, mark| {
        *counts.entry(mark).or_default() += 1;
        counts
    })
}

#[cfg(test)]
mod tests;
