//! Positions as records of the relay's own topic: one is written with each batch, and all are read
//! back at a start.
//!
//! Most records contain the whole position. If `extra_xids` and `streamed_seqs` are long, a record
//! contains only their additions since the previous record. A *chain* is a whole record and the
//! additions after it, which are read back together. The key of a record is its place in the chain,
//! so compaction keeps exactly one chain.

use serde::{Deserialize, Serialize};

use super::{Identity, Position, Seal, SeqSet};

/// Version of the format.
const VERSION: u32 = 1;

/// `extra_xids` and `streamed_seqs` are written whole up to this number of ranges (about 30 bytes
/// each).
const WHOLE_RANGES: usize = 32;

/// Maximum number of records of a chain. Bounds the records that a start reads.
const CHAIN_MAX: u64 = 256;

/// Largest number of a record: the relay's row stores it as `bigint`.
const NUMBER_MAX: u64 = i64::MAX.cast_unsigned() - 1;

/// One record of the position topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    version: u32,
    /// Increases by one per record.
    number: u64,
    /// The record's place in its chain. Zero is a whole record.
    chain: u64,
    epoch: i64,
    identity: Identity,
    position: Position,
}

/// An error while reading the position topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("record {0} is not a position record: {1}")]
    Foreign(i64, String),
    #[error(
        "record {0} has format {1}, which this version of tidings does not support: run a newer \
         version"
    )]
    Newer(i64, u32),
    #[error("record {number} follows record {before}: the records in between are missing")]
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
    seal: Seal,
}

impl Journal {
    /// Creates a journal that continues after record `number` and signs with `seal`.
    pub(crate) fn new(identity: Identity, epoch: i64, number: u64, seal: Seal) -> Self {
        Self {
            identity,
            epoch,
            number,
            chain: 0,
            last: None,
            seal,
        }
    }

    /// Returns the number of the last record.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Returns key and value of the next record.
    pub(crate) fn write(&mut self, position: &Position) -> (String, Vec<u8>) {
        self.number += 1;
        let chained = self
            .last
            .as_ref()
            .filter(|last| {
                ranges(position) > WHOLE_RANGES
                    && self.chain + 1 < CHAIN_MAX
                    && last.snapshot == position.snapshot
            })
            .filter(|last| last.streamed_seqs.is_some() == position.streamed_seqs.is_some());
        let mut written = position.clone();
        match chained {
            Some(last) => {
                self.chain += 1;
                written.extra_xids = position.extra_xids.without(&last.extra_xids);
                written.streamed_seqs = position
                    .streamed_seqs
                    .as_ref()
                    .zip(last.streamed_seqs.as_ref())
                    .map(|(now, then)| now.without(then));
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
        (
            self.chain.to_string(),
            self.seal
                .sign(serde_json::to_vec(&entry).expect("a position is plain data")),
        )
    }
}

/// Returns the number of ranges in the two sets that can make a position long.
fn ranges(position: &Position) -> usize {
    position.extra_xids.ranges() + position.streamed_seqs.as_ref().map_or(0, SeqSet::ranges)
}

/// Rules that decide which records of the topic count.
#[derive(Clone, Debug)]
pub(crate) struct Trust {
    /// Records with this signature count.
    pub(crate) seal: Seal,
    /// The number of the last record that the database refers to.
    pub(crate) known: u64,
    /// The relay has never signed a record. Unsigned records then count up to the known number, and
    /// beyond it as long as each has the number after the previous one.
    pub(crate) unsigned: bool,
}

/// The position in the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) position: Position,
    pub(crate) identity: Identity,
    pub(crate) epoch: i64,
    pub(crate) number: u64,
    /// The relay has signed the record.
    pub(crate) signed: bool,
}

/// Records that do not count, because another program wrote them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Foreign {
    pub(crate) records: u64,
    /// The offset of the last one.
    pub(crate) last: i64,
    /// One of them has the number of the last record that the database refers to.
    pub(crate) known: bool,
}

/// Reads records back, in the order of their offsets. A record that does not count is skipped,
/// regardless of its content. A record that counts and cannot be read is an error, unless a whole
/// position follows it: then the operator has moved the relay past it.
#[derive(Debug)]
pub(crate) struct Replay {
    trust: Trust,
    state: Option<Entry>,
    signed: bool,
    damage: Option<JournalError>,
    foreign: Foreign,
}

impl Replay {
    /// Creates a replay that has read no record.
    pub(crate) fn new(trust: Trust) -> Self {
        Self {
            trust,
            state: None,
            signed: false,
            damage: None,
            foreign: Foreign::default(),
        }
    }

    /// Reads the next record.
    pub(crate) fn read(&mut self, offset: i64, value: &[u8]) {
        let signed = self.trust.seal.signed(value);
        if signed {
            // From here on, this relay signs its records.
            self.trust.unsigned = false;
        } else if !self.is_plausible(value) {
            let claims = serde_json::from_slice::<Entry>(value)
                .is_ok_and(|entry| entry.number == self.trust.known);
            let Foreign { records, known, .. } = self.foreign;
            self.foreign = Foreign {
                records: records + 1,
                last: offset,
                known: known || claims,
            };
            return;
        }
        match self.take(offset, value, signed) {
            Ok(true) => self.damage = None,
            Ok(false) => {}
            Err(damage) => self.damage = Some(damage),
        }
    }

    /// Returns `true` if an unsigned record may come from a version that did not sign.
    fn is_plausible(&self, value: &[u8]) -> bool {
        let Some(entry) = self
            .trust
            .unsigned
            .then(|| serde_json::from_slice::<Entry>(value).ok())
            .flatten()
        else {
            return false;
        };
        let follows = self.state.as_ref().is_some_and(|state| {
            state.number.checked_add(1) == Some(entry.number) && state.epoch <= entry.epoch
        });
        entry.version == VERSION && (entry.number <= self.trust.known || follows)
    }

    /// Applies a record. Returns `true` if it is a whole position.
    fn take(&mut self, offset: i64, value: &[u8], signed: bool) -> Result<bool, JournalError> {
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
                format!(
                    "its number {} or its place {} in its chain is impossible",
                    entry.number, entry.chain
                ),
            ));
        }
        match (&mut self.state, entry.chain) {
            // A copy of an earlier record, which any program with write access to the topic can
            // append.
            (Some(state), chain)
                if entry.number <= state.number
                    && (chain > 0 || !signed || entry.epoch <= state.epoch) => {}
            (state, 0) => {
                *state = Some(entry);
                self.signed = signed;
                return Ok(true);
            }
            // The remainder of an older chain that compaction has not removed yet.
            (None, _) => {}
            (Some(state), _) if entry.number == state.number + 1 => {
                let mut also = std::mem::take(&mut state.position.extra_xids);
                also.extend(&entry.position.extra_xids);
                let mut streamed = state.position.streamed_seqs.take();
                streamed
                    .iter_mut()
                    .zip(&entry.position.streamed_seqs)
                    .for_each(|(all, new)| all.extend(new));
                *state = entry;
                (state.position.extra_xids, state.position.streamed_seqs) = (also, streamed);
            }
            (Some(state), _) => {
                return Err(JournalError::Gap {
                    before: state.number,
                    number: entry.number,
                });
            }
        }
        Ok(false)
    }

    /// Returns the last position that counts, and the records that do not count.
    ///
    /// # Errors
    ///
    /// Returns the error of a record after the last whole one that is not a position record of this
    /// version, or whose predecessor is missing.
    pub(crate) fn end(self) -> Result<(Option<Recorded>, Foreign), JournalError> {
        if let Some(damage) = self.damage {
            return Err(damage);
        }
        let signed = self.signed;
        let recorded = |Entry {
                            position,
                            identity,
                            epoch,
                            number,
                            ..
                        }| Recorded {
            position,
            identity,
            epoch,
            number,
            signed,
        };
        Ok((self.state.map(recorded), self.foreign))
    }
}

/// Reads arbitrary bytes as records, one per line, and uses the resulting position. For the fuzz
/// target.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_position_journal(bytes: &[u8]) {
    // Bytes from a fuzzer are never signed.
    let trust = Trust {
        seal: Seal::new(b"fuzzing"),
        known: u64::MAX,
        unsigned: true,
    };
    let mut replay = Replay::new(trust.clone());
    bytes
        .split(|byte| *byte == b'\n')
        .enumerate()
        .for_each(|(offset, line)| replay.read(offset as i64, line));
    let Ok((
        Some(Recorded {
            position,
            identity,
            epoch,
            number,
            ..
        }),
        _,
    )) = replay.end()
    else {
        return;
    };
    let _ = (
        position.covers(21, 5),
        position.is_start(),
        position.needs_below(30),
        position.rewound_to(25, 3),
    );
    let _ = position.skipped_to(
        "50:60:55".parse().expect("a snapshot"),
        crate::postgres::Lsn(9),
        0,
    );
    let mut progress = super::Progress::new(position.clone());
    for xid in [0, 21, 30, u32::MAX] {
        progress.begin(xid);
        if progress.wants_event() && !progress.gives_up(4) {
            progress.sent(uuid::Uuid::nil(), 9);
        }
        progress.end(crate::postgres::Lsn(100));
    }
    let (_, record) = Journal::new(
        identity,
        epoch,
        number.min(NUMBER_MAX - 1),
        trust.seal.clone(),
    )
    .write(&progress.position());
    let mut replay = Replay::new(trust);
    replay.read(0, &record);
    let read = replay
        .end()
        .expect("a record that was just written")
        .0
        .map(|recorded| recorded.position);
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
        Identity {
            system: "1".into(),
            database: 2,
            timeline: 1,
        }
    }

    fn seal() -> Seal {
        Seal::new(b"0123456789abcdef")
    }

    fn journal(number: u64) -> Journal {
        Journal::new(identity(), 1, number, seal())
    }

    /// Reads as a relay that signs.
    fn replay() -> Replay {
        Replay::new(Trust {
            seal: seal(),
            known: 7,
            unsigned: false,
        })
    }

    /// Returns the number of the resulting record, and the number of records that do not count.
    fn number(mut replay: Replay, records: &[&[u8]]) -> Result<(Option<u64>, u64), JournalError> {
        records
            .iter()
            .enumerate()
            .for_each(|(at, value)| replay.read(at as i64, value));
        replay
            .end()
            .map(|(recorded, foreign)| (recorded.map(|recorded| recorded.number), foreign.records))
    }

    /// Returns a record in the form of a version that did not sign, with another number and epoch.
    fn unsigned(record: &[u8], number: u64, epoch: i64) -> Vec<u8> {
        let mut entry: serde_json::Value = serde_json::from_slice(record).expect("JSON");
        entry.as_object_mut().expect("an object").remove("hmac");
        (entry["number"], entry["epoch"]) = (number.into(), epoch.into());
        serde_json::to_vec(&entry).expect("plain data")
    }

    proptest! {
        #[test]
        fn what_is_read_back_is_the_last_position_written_whatever_compaction_has_removed(
            steps in proptest::collection::vec((0u64..50, any::<bool>()), 1..120),
            compacted in 0usize..120,
        ) {
            let mut journal = journal(7);
            let mut position = Position::start();
            let mut records: Vec<(String, Vec<u8>)> = Vec::new();
            for (step, (count, settle)) in steps.iter().enumerate() {
                let base = 1_000 * step as u64 + 5;
                (0..*count).for_each(|n| position.extra_xids.insert(base + 2 * n));
                if let Some(streamed) = &mut position.streamed_seqs {
                    (0..*count as i64)
                        .for_each(|n| assert!(streamed.insert(2_000 * step as i64 + 3 * n + 1)));
                }
                if *settle {
                    position.snapshot = format!("{0}:{0}:", 1_000 * step + 900).parse().expect(
                        "a snapshot",
                    );
                    position.extra_xids = position.extra_xids.unseen_by(&position.snapshot.clone());
                    position.streamed_seqs = (step % 7 != 6).then(SeqSet::default);
                }
                records.push(journal.write(&position));
            }
            // Compaction keeps the last record of each key among the first ones, at their places.
            let upto = compacted.min(records.len());
            let last: BTreeMap<&str, usize> = records[..upto]
                .iter()
                .enumerate()
                .map(|(at, (key, _))| (key.as_str(), at))
                .collect();
            let mut replay = replay();
            for (at, (key, value)) in records.iter().enumerate() {
                if at >= upto || last[key.as_str()] == at {
                    replay.read(at as i64, value);
                }
            }
            let recorded = Recorded {
                position,
                identity: identity(),
                epoch: 1,
                number: 7 + steps.len() as u64,
                signed: true,
            };
            prop_assert_eq!(replay.end(), Ok((Some(recorded), Foreign::default())));
        }
    }

    #[test]
    fn a_chain_with_a_hole_and_a_record_of_a_newer_version_are_refused_until_a_whole_position_follows()
     {
        let mut journal = journal(0);
        let mut position = Position {
            extra_xids: spread(100),
            ..Position::start()
        };
        let mut records = vec![journal.write(&position)];
        for xid in [1_000, 1_010] {
            position.extra_xids.insert(xid);
            records.push(journal.write(&position));
        }
        let newer = seal().sign(br#"{"version":9}"#.to_vec());
        assert_eq!(
            number(replay(), &[&records[0].1, &records[2].1]),
            Err(JournalError::Gap {
                before: 1,
                number: 3
            })
        );
        assert_eq!(
            number(replay(), &[&records[0].1, &newer]),
            Err(JournalError::Newer(1, 9))
        );
        assert_eq!(number(replay(), &[&newer, &records[0].1]), Ok((Some(1), 0)));
        assert_eq!(
            records
                .iter()
                .map(|(key, _)| key.as_str())
                .collect::<Vec<_>>(),
            ["0", "1", "2"]
        );
    }

    #[test]
    fn a_record_of_another_program_is_passed_over_whatever_it_claims() {
        let mut journal = journal(6);
        let ours = journal.write(&Position::start()).1;
        let next = journal.write(&Position::start()).1;
        let theirs = Journal::new(identity(), 9, 99, Seal::new(b"another secret.."))
            .write(&Position::start())
            .1;
        for forged in [
            unsigned(&ours, 100, 9),
            unsigned(&ours, 8, 1),
            theirs,
            b"{}".to_vec(),
            br#"{"version":9}"#.to_vec(),
            Vec::new(),
        ] {
            assert_eq!(number(replay(), &[&ours, &forged]), Ok((Some(7), 1)));
            assert_eq!(number(replay(), &[&ours, &forged, &next]), Ok((Some(8), 1)));
            assert_eq!(number(replay(), &[&forged]), Ok((None, 1)));
        }
        // A copy of an earlier record of the relay.
        assert_eq!(number(replay(), &[&ours, &next, &ours]), Ok((Some(8), 0)));
    }

    /// An installation whose records are not signed yet.
    #[test]
    fn unsigned_records_count_until_the_relay_signs_and_only_as_far_as_they_follow_from_the_database()
     {
        let first = journal(4).write(&Position::start()).1;
        let old = |number, epoch| unsigned(&first, number, epoch);
        let upgraded = || {
            Replay::new(Trust {
                seal: seal(),
                known: 6,
                unsigned: true,
            })
        };
        assert_eq!(
            number(upgraded(), &[&old(5, 1), &old(6, 1)]),
            Ok((Some(6), 0))
        );
        // The relay was killed before the database referred to the last records.
        assert_eq!(
            number(upgraded(), &[&old(6, 1), &old(7, 1), &old(8, 2)]),
            Ok((Some(8), 0))
        );
        // Records that leave a gap or return to an earlier leader do not count.
        assert_eq!(
            number(upgraded(), &[&old(6, 1), &old(8, 1)]),
            Ok((Some(6), 1))
        );
        assert_eq!(
            number(upgraded(), &[&old(6, 2), &old(7, 1)]),
            Ok((Some(6), 1))
        );
        assert_eq!(number(upgraded(), &[&old(9, 1)]), Ok((None, 1)));
        assert_eq!(number(upgraded(), &[b"{}", &old(6, 1)]), Ok((Some(6), 1)));
        let signed = journal(6).write(&Position::start()).1;
        assert_eq!(
            number(upgraded(), &[&old(6, 1), &signed, &old(8, 1)]),
            Ok((Some(7), 1))
        );
    }
}
