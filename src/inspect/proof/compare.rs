//! Comparison of the committed events with the records of the topics. Pure, except that large
//! inputs are sorted in temporary files.
//!
//! Both inputs are merged by event id. An event with a record is passed on to the check of the
//! order ([`super::order`]). An event without the record that it must have, and records without an
//! event, are passed on too, because only the caller can find out more about them.

use std::io;
use std::iter::Peekable;
use std::path::Path;

use super::entry::{CommittedEvent, DeliveredEvent, Id, Origin, State, TopicRecord};
use super::horizon::Horizons;
use super::report::{Fault, Findings, Kind, Tally};
use super::sorter::{Sorted, Sorter};

/// Maximum number of records of one event that are kept. More are only counted.
const RECORDS_MAX: usize = 64;

/// Inputs of a comparison.
pub(crate) struct Inputs {
    pub(crate) events: Sorter<CommittedEvent>,
    pub(crate) records: Sorter<TopicRecord>,
}

/// Result of a comparison.
pub(crate) struct Compared {
    pub(crate) tally: Tally,
    pub(crate) findings: Findings,
    /// Events with a record, to check their order.
    pub(crate) delivered: Sorter<DeliveredEvent>,
    /// Events that must have a record and have none.
    pub(crate) missing: Sorter<CommittedEvent>,
    /// Records without an event.
    pub(crate) unknown: Sorter<TopicRecord>,
    /// Events that are not settled: waiting and parked ones.
    pub(crate) open: Sorter<CommittedEvent>,
    /// Records of events that are not settled.
    pub(crate) open_records: Sorter<TopicRecord>,
}

/// Circumstances of a comparison.
pub(crate) struct Rules<'r> {
    /// An event must not have more records than operators have caused.
    pub(crate) exactly_once: bool,
    pub(crate) folder: &'r Path,
}

/// Compares the inputs. Records evidence about trimmed partitions in `horizons`.
///
/// # Errors
///
/// Returns an error if a temporary file cannot be used.
pub(crate) fn compare(
    inputs: Inputs,
    rules: &Rules<'_>,
    horizons: &mut Horizons,
) -> io::Result<Compared> {
    let folder = rules.folder;
    let mut compared = Compared {
        tally: Tally {
            committed: inputs.events.len(),
            records: inputs.records.len(),
            ..Tally::default()
        },
        findings: Findings::default(),
        delivered: Sorter::new(folder),
        missing: Sorter::new(folder),
        unknown: Sorter::new(folder),
        open: Sorter::new(folder),
        open_records: Sorter::new(folder),
    };
    let mut groups = Groups {
        events: inputs.events.sorted()?.peekable(),
        records: inputs.records.sorted()?.peekable(),
    };
    while let Some(group) = groups.next()? {
        match group.event {
            Some(event) => compared.event(&event, &group, rules, horizons)?,
            None => group
                .records
                .iter()
                .try_for_each(|record| compared.unknown.push(*record))?,
        }
    }
    Ok(compared)
}

impl Compared {
    fn event(
        &mut self,
        event: &CommittedEvent,
        group: &Group,
        rules: &Rules<'_>,
        horizons: &mut Horizons,
    ) -> io::Result<()> {
        let (copies, letters) = (group.copies, group.letters);
        let is_present = copies + letters > 0;
        match event.state {
            State::Published if copies > 0 => self.tally.delivered += 1,
            State::Published if letters > 0 => self.tally.dead_lettered += 1,
            State::Published => self.missing.push(*event)?,
            State::Waiting if is_present => self.tally.ahead += 1,
            State::Waiting => self.tally.waiting += 1,
            State::Parked => self.tally.parked += 1,
            State::Discarded => self.tally.discarded += 1,
            State::Skipped => self.tally.skipped += 1,
        }
        let is_open = matches!(event.state, State::Waiting | State::Parked);
        if is_open {
            self.open.push(*event)?;
            group
                .records
                .iter()
                .try_for_each(|record| self.open_records.push(*record))?;
        }
        if let Some(last) = group.records.last() {
            let copies = copies.saturating_sub(1);
            self.repeats(copies, event.repeats, event.id, *last, rules.exactly_once);
        }
        let mut records = group.records.iter().peekable();
        while let Some(first) = records.next() {
            // The records are sorted by place and offset. Only the first one of each place counts.
            while records.next_if(|next| next.place == first.place).is_some() {}
            if first.origin == Origin::DeadLetter {
                continue;
            }
            horizons.matched(first.place, first.offset, event.seq);
            // A repeated event appears again behind newer ones, on purpose. The order of an open
            // event is checked when it is settled.
            if event.repeats == 0 && !is_open {
                self.delivered.push(DeliveredEvent {
                    aggregate: event.aggregate,
                    place: first.place,
                    offset: first.offset,
                    seq: event.seq,
                    xid: event.xid,
                    committed: event.committed,
                    id: event.id,
                })?;
            }
        }
        Ok(())
    }

    /// Adds the records of an event in addition to the first one.
    pub(super) fn repeats(
        &mut self,
        copies: u64,
        on_purpose: u8,
        id: Id,
        last: TopicRecord,
        exactly_once: bool,
    ) {
        let expected = copies.min(u64::from(on_purpose));
        self.tally.repeated_on_purpose += expected;
        let repeated = copies - expected;
        if repeated == 0 {
            return;
        }
        if !exactly_once {
            self.tally.repeated_at_least_once += repeated;
            return;
        }
        self.tally.repeated += repeated;
        self.findings.add(Fault {
            kind: Kind::Repeated,
            id,
            place: Some((last.place, last.offset)),
            other: None,
            copies: copies + 1,
        });
    }
}

/// An event and its records.
struct Group {
    event: Option<CommittedEvent>,
    /// The first records, sorted by place and offset.
    records: Vec<TopicRecord>,
    /// Number of records that are not dead letters.
    copies: u64,
    letters: u64,
}

struct Groups {
    events: Peekable<Sorted<CommittedEvent>>,
    records: Peekable<Sorted<TopicRecord>>,
}

impl Groups {
    /// Returns the entries of the next id.
    fn next(&mut self) -> io::Result<Option<Group>> {
        let event_id = peeked(&mut self.events)?.map(|event| event.id);
        let record_id = peeked(&mut self.records)?.map(|record| record.id);
        let Some(id) = [event_id, record_id].into_iter().flatten().min() else {
            return Ok(None);
        };
        let event = match event_id == Some(id) {
            true => self.events.next().transpose()?,
            false => None,
        };
        // An event that is carried over to the next round may be read from the table again.
        while peeked(&mut self.events)?.is_some_and(|event| event.id == id) {
            self.events.next();
        }
        let (mut records, mut copies, mut letters) = (Vec::new(), 0, 0);
        let mut last = None;
        while let Some(record) = peeked(&mut self.records)?.filter(|record| record.id == id) {
            self.records.next();
            // A record that is carried over may be read again.
            if last == Some((record.place, record.offset)) {
                continue;
            }
            last = Some((record.place, record.offset));
            match record.origin {
                Origin::DeadLetter => letters += 1,
                Origin::Relay | Origin::Other => copies += 1,
            }
            if records.len() < RECORDS_MAX {
                records.push(record);
            }
        }
        Ok(Some(Group {
            event,
            records,
            copies,
            letters,
        }))
    }
}

fn peeked<T: Copy>(
    entries: &mut Peekable<impl Iterator<Item = io::Result<T>>>,
) -> io::Result<Option<T>> {
    match entries.next_if(Result::is_err) {
        Some(error) => error.map(Some),
        None => Ok(entries
            .peek()
            .and_then(|entry| entry.as_ref().ok())
            .copied()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::inspect::proof::entry::{NOWHERE, UNKNOWN_TIME};

    const STATES: [State; 5] = [
        State::Published,
        State::Waiting,
        State::Parked,
        State::Discarded,
        State::Skipped,
    ];

    fn event(number: u8, state: State, repeats: u8) -> CommittedEvent {
        CommittedEvent {
            id: [number; 16],
            seq: i64::from(number),
            xid: 1,
            aggregate: 1,
            committed: UNKNOWN_TIME,
            place: NOWHERE,
            state,
            repeats,
        }
    }

    fn record(number: u8, offset: i64, origin: Origin) -> TopicRecord {
        TopicRecord {
            id: [number; 16],
            place: 0,
            offset,
            time: 0,
            origin,
        }
    }

    fn compared(
        events: &[CommittedEvent],
        records: &[TopicRecord],
        exactly_once: bool,
    ) -> (Tally, Vec<u8>, Vec<u8>, usize) {
        let folder = std::env::temp_dir();
        let mut inputs = Inputs {
            events: Sorter::new(&folder),
            records: Sorter::new(&folder),
        };
        for event in events {
            inputs.events.push(*event).expect("in memory");
        }
        for record in records {
            inputs.records.push(*record).expect("in memory");
        }
        let rules = Rules {
            exactly_once,
            folder: &folder,
        };
        let compared = compare(inputs, &rules, &mut Horizons::default()).expect("in memory");
        let ids = |sorted: Vec<Id>| sorted.into_iter().map(|id| id[0]).collect();
        let missing = compared.missing.sorted().expect("in memory");
        let unknown = compared.unknown.sorted().expect("in memory");
        (
            compared.tally,
            ids(missing.map(|event| event.expect("in memory").id).collect()),
            ids(unknown
                .map(|record| record.expect("in memory").id)
                .collect()),
            compared.findings.into_faults().len(),
        )
    }

    proptest! {
        /// The naive model counts in maps.
        #[test]
        fn each_event_and_each_record_is_counted_once_as_in_a_naive_model(
            drawn in proptest::collection::btree_map(any::<u8>(), (0usize..5, 0u8..3), 0..40),
            sent in proptest::collection::vec((any::<u8>(), any::<bool>()), 0..80),
            near in proptest::collection::vec((0usize..40, any::<bool>()), 0..80),
            exactly_once in any::<bool>(),
        ) {
            let events: Vec<_> = drawn
                .iter()
                .map(|(number, (state, repeats))| event(*number, STATES[*state], *repeats))
                .collect();
            // Most records belong to one of the events.
            let of_events = near.iter().filter_map(|(at, is_letter)| {
                events.get(at % events.len().max(1)).map(|event| (event.id[0], *is_letter))
            });
            let records: Vec<_> = (0..)
                .zip(of_events.chain(sent.iter().copied()))
                .map(|(offset, (number, is_letter))| {
                    let origin = if is_letter { Origin::DeadLetter } else { Origin::Relay };
                    record(number, offset, origin)
                })
                .collect();
            let mut expected = Tally {
                committed: events.len() as u64,
                records: records.len() as u64,
                ..Tally::default()
            };
            let mut counts: BTreeMap<u8, (u64, u64)> = BTreeMap::new();
            for record in &records {
                let count = counts.entry(record.id[0]).or_default();
                match record.origin {
                    Origin::DeadLetter => count.1 += 1,
                    _ => count.0 += 1,
                }
            }
            let mut missing = Vec::new();
            for event in &events {
                let (copies, letters) = counts.remove(&event.id[0]).unwrap_or_default();
                match event.state {
                    State::Published if copies > 0 => expected.delivered += 1,
                    State::Published if letters > 0 => expected.dead_lettered += 1,
                    State::Published => missing.push(event.id[0]),
                    State::Waiting if copies + letters > 0 => expected.ahead += 1,
                    State::Waiting => expected.waiting += 1,
                    State::Parked => expected.parked += 1,
                    State::Discarded => expected.discarded += 1,
                    State::Skipped => expected.skipped += 1,
                }
                let extra = copies.saturating_sub(1);
                let on_purpose = extra.min(event.repeats.into());
                expected.repeated_on_purpose += on_purpose;
                match exactly_once {
                    true => expected.repeated += extra - on_purpose,
                    false => expected.repeated_at_least_once += extra - on_purpose,
                }
            }
            let mut unknown: Vec<u8> = records.iter().map(|record| record.id[0]).collect();
            unknown.retain(|number| counts.contains_key(number));
            unknown.sort_unstable();
            let (tally, found_missing, found_unknown, _) =
                compared(&events, &records, exactly_once);
            prop_assert_eq!(tally, expected);
            prop_assert_eq!(found_missing, missing);
            prop_assert_eq!(found_unknown, unknown);
        }
    }

    #[test]
    fn a_record_that_is_read_twice_is_one_record() {
        let events = [event(1, State::Published, 0)];
        let twice = [record(1, 5, Origin::Relay), record(1, 5, Origin::Relay)];
        assert_eq!(compared(&events, &twice, true).0.repeated, 0);
        let copy = [record(1, 5, Origin::Relay), record(1, 6, Origin::Relay)];
        let (tally, .., findings) = compared(&events, &copy, true);
        assert_eq!((tally.repeated, findings), (1, 1));
    }
}
