//! Positions as records of the relay's own topic: what is written with each batch, and what is read back at a start.
//!
//! Most records hold the whole position. When `also` and `streamed` are long, a record holds what was added to them since the record before, and the chain
//! that began with the last whole one is read back together. Keys number the records of a chain, so that compaction keeps exactly one chain.

use serde::{Deserialize, Serialize};

use super::{Identity, Position, SeqSet};

/// The format's version.
const VERSION: u32 = 1;

/// `also` and `streamed` are written whole up to this many ranges (about 30 bytes each).
const WHOLE_RANGES: usize = 32;

/// Most records of a chain: bounds what a start reads.
const CHAIN_MAX: u64 = 256;

/// Records are numbered up to here: the relay's row has a `bigint`.
const NUMBER_MAX: u64 = i64::MAX.cast_unsigned() - 1;

/// One record of the position topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    version: u32,
    /// Counts up by one a record.
    number: u64,
    /// Its place in its chain; zero is whole.
    chain: u64,
    epoch: i64,
    identity: Identity,
    position: Position,
}

/// Why the position topic cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("record {0} is not one of a position: {1}")]
    Foreign(i64, String),
    #[error("record {0} has format {1}, which this version of tidings does not know: run the newer one")]
    Newer(i64, u32),
    #[error("record {number} follows record {before}: records in between are gone")]
    Gap { before: u64, number: u64 },
}

/// Writes positions as a chain of records.
#[derive(Debug)]
pub(crate) struct Journal {
    identity: Identity,
    epoch: i64,
    number: u64,
    chain: u64,
    last: Option<Position>,
}

impl Journal {
    /// Goes on after record `number`.
    pub(crate) fn new(identity: Identity, epoch: i64, number: u64) -> Self {
        Self { identity, epoch, number, chain: 0, last: None }
    }

    /// The number of the last record.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The next record: key and value.
    pub(crate) fn write(&mut self, position: &Position) -> (String, Vec<u8>) {
        self.number += 1;
        let chained = self
            .last
            .as_ref()
            .filter(|last| ranges(position) > WHOLE_RANGES && self.chain + 1 < CHAIN_MAX && last.seen == position.seen)
            .filter(|last| last.streamed.is_some() == position.streamed.is_some());
        let mut written = position.clone();
        match chained {
            Some(last) => {
                self.chain += 1;
                written.also = position.also.without(&last.also);
                written.streamed = position.streamed.as_ref().zip(last.streamed.as_ref()).map(|(now, then)| now.without(then));
            }
            None => self.chain = 0,
        }
        self.last = Some(position.clone());
        let entry = Entry {
            version: VERSION,
            number: self.number,
            chain: self.chain,
            epoch: self.epoch,
            identity: self.identity.clone(),
            position: written,
        };
        (self.chain.to_string(), serde_json::to_vec(&entry).expect("a position is plain data"))
    }
}

/// How long the two sets are that a position may be long by.
fn ranges(position: &Position) -> usize {
    position.also.ranges() + position.streamed.as_ref().map_or(0, SeqSet::ranges)
}

/// Reads records back, in the order of their offsets. What cannot be read is forgotten once a whole position follows it: the operator has
/// moved the relay on then.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    state: Option<Entry>,
    damage: Option<JournalError>,
}

impl Replay {
    /// Takes the next record.
    pub(crate) fn read(&mut self, offset: i64, value: &[u8]) {
        match self.take(offset, value) {
            Ok(true) => self.damage = None,
            Ok(false) => {}
            Err(damage) => self.damage = Some(damage),
        }
    }

    /// Whether the record was a whole position.
    fn take(&mut self, offset: i64, value: &[u8]) -> Result<bool, JournalError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let foreign = |error: serde_json::Error| JournalError::Foreign(offset, error.to_string());
        let Versioned { version } = serde_json::from_slice(value).map_err(foreign)?;
        if version != VERSION {
            return Err(JournalError::Newer(offset, version));
        }
        let entry: Entry = serde_json::from_slice(value).map_err(foreign)?;
        if entry.chain >= CHAIN_MAX || entry.number > NUMBER_MAX {
            return Err(JournalError::Foreign(
                offset,
                format!("its number {} or its place {} in its chain is impossible", entry.number, entry.chain),
            ));
        }
        match (&mut self.state, entry.chain) {
            (state, 0) => {
                *state = Some(entry);
                return Ok(true);
            }
            // A rest of an older chain, which compaction has not removed yet.
            (None, _) => {}
            (Some(state), _) if entry.number <= state.number => {}
            (Some(state), _) if entry.number == state.number + 1 => {
                let mut also = std::mem::take(&mut state.position.also);
                also.extend(&entry.position.also);
                let mut streamed = state.position.streamed.take();
                streamed.iter_mut().zip(&entry.position.streamed).for_each(|(all, new)| all.extend(new));
                *state = entry;
                (state.position.also, state.position.streamed) = (also, streamed);
            }
            (Some(state), _) => return Err(JournalError::Gap { before: state.number, number: entry.number }),
        }
        Ok(false)
    }

    /// The last position, what it is a position in, and its record's epoch and number.
    ///
    /// # Errors
    /// A record after the last whole one that is none of ours, or whose predecessor is missing.
    pub(crate) fn end(self) -> Result<Option<(Position, Identity, i64, u64)>, JournalError> {
        match self.damage {
            Some(damage) => Err(damage),
            None => Ok(self.state.map(|entry| (entry.position, entry.identity, entry.epoch, entry.number))),
        }
    }
}

/// Reads any bytes as records, one per line, and uses the position that comes of them: for the fuzz target.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_position_journal(bytes: &[u8]) {
    let mut replay = Replay::default();
    bytes.split(|byte| *byte == b'\n').enumerate().for_each(|(offset, line)| replay.read(offset as i64, line));
    let Ok(Some((position, identity, epoch, number))) = replay.end() else { return };
    let _ = (position.covers(21, 5), position.is_start(), position.needs_below(30), position.rewound_to(25, 3));
    let _ = position.skipped_to("50:60:55".parse().expect("a snapshot"), crate::postgres::Lsn(9), 0);
    let mut progress = super::Progress::new(position.clone());
    for xid in [0, 21, 30, u32::MAX] {
        progress.begin(xid);
        if progress.wants_event() && !progress.gives_up(4) {
            progress.sent(uuid::Uuid::nil(), 9);
        }
        progress.end(crate::postgres::Lsn(100));
    }
    let (_, record) = Journal::new(identity, epoch, number.min(NUMBER_MAX - 1)).write(&progress.position());
    let mut replay = Replay::default();
    replay.read(0, &record);
    let read = replay.end().expect("a record that was just written").map(|(position, ..)| position);
    assert_eq!(read, Some(progress.position()));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn spread(count: u64) -> super::super::XidSet {
        let mut set = super::super::XidSet::default();
        (0..count).for_each(|n| set.insert(10 + 2 * n));
        set
    }

    fn identity() -> Identity {
        Identity { system: "1".into(), database: 2, timeline: 1 }
    }

    proptest! {
        #[test]
        fn what_is_read_back_is_the_last_position_written_whatever_compaction_has_removed(steps in proptest::collection::vec((0u64..50, any::<bool>()), 1..120), compacted in 0usize..120) {
            let mut journal = Journal::new(identity(), 1, 7);
            let mut position = Position::start();
            let mut records: Vec<(String, Vec<u8>)> = Vec::new();
            for (step, (count, settle)) in steps.iter().enumerate() {
                (0..*count).for_each(|n| position.also.insert(1_000 * step as u64 + 2 * n + 5));
                if let Some(streamed) = &mut position.streamed {
                    (0..*count as i64).for_each(|n| assert!(streamed.insert(2_000 * step as i64 + 3 * n + 1)));
                }
                if *settle {
                    position.seen = format!("{0}:{0}:", 1_000 * step + 900).parse().expect("a snapshot");
                    position.also = position.also.unseen_by(&position.seen.clone());
                    position.streamed = (step % 7 != 6).then(SeqSet::default);
                }
                records.push(journal.write(&position));
            }
            // Compaction keeps the last record of each key among the first ones, at their places.
            let upto = compacted.min(records.len());
            let last: BTreeMap<&str, usize> = records[..upto].iter().enumerate().map(|(at, (key, _))| (key.as_str(), at)).collect();
            let mut replay = Replay::default();
            for (at, (key, value)) in records.iter().enumerate() {
                if at >= upto || last[key.as_str()] == at {
                    replay.read(at as i64, value);
                }
            }
            prop_assert_eq!(replay.end(), Ok(Some((position, identity(), 1, 7 + steps.len() as u64))));
        }
    }

    #[test]
    fn a_chain_with_a_hole_and_a_foreign_record_are_refused_until_a_whole_position_follows() {
        let mut journal = Journal::new(identity(), 1, 0);
        let mut position = Position { also: spread(100), ..Position::start() };
        let mut records = vec![journal.write(&position)];
        for xid in [1_000, 1_010] {
            position.also.insert(xid);
            records.push(journal.write(&position));
        }
        let after = |last: &[u8]| {
            let mut replay = Replay::default();
            [&records[0].1, last].into_iter().enumerate().for_each(|(at, value)| replay.read(at as i64, value));
            replay.end().map(|end| end.map(|(.., number)| number))
        };
        assert_eq!(after(&records[2].1), Err(JournalError::Gap { before: 1, number: 3 }));
        assert!(matches!(after(b"{}"), Err(JournalError::Foreign(1, _))));
        assert_eq!(after(br#"{"version":9}"#), Err(JournalError::Newer(1, 9)));
        let mut replay = Replay::default();
        [b"{}".as_slice(), &records[0].1].into_iter().enumerate().for_each(|(at, value)| replay.read(at as i64, value));
        assert!(matches!(replay.end(), Ok(Some((.., 1)))));
        assert_eq!(records.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["0", "1", "2"]);
    }
}
