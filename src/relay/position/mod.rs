//! Which events are in Kafka, and what that is said of. All of it pure.
//!
//! A [`Position`] says *which transactions* are published, not how far some reader has read. So one position serves the log and the table,
//! and a relay changes from one to the other, loses its slot, or is told to read elsewhere, without a gap and without a repeat:
//!
//! ```text
//! published  =  what `seen` sees                                    a snapshot, as Postgres writes it
//!            ∪  the transactions in `also`                          streamed, and not yet seen by a settled snapshot: what `streamed` has of them
//!            ∪  the first `events` events of `partial`              a Kafka transaction may end within one of Postgres's
//!            ∪  rows up to `after` of what `window.to` sees         a window of the table that is being read
//!            ∪  the events in `given_up`                            by the operator, one by one
//! ```
//!
//! `log` is where the log may be read from: every commit before it is published. It is a hint only: what a stream then brings is skipped
//! or published by its transaction's id.
//!
//! `seen` moves on by *pairing*: take a snapshot S, then the log's insert position L. Once everything that committed before L is
//! published, S sees nothing that is not. (The flush position instead of the insert position is wrong: a transaction may be visible
//! before its commit record is flushed.)
//!
//! That the stream brought a transaction does not say that it brought all of its events. Whether a publication publishes an insert is decided insert by insert,
//! by the catalog as it was at that place of the log; a transaction in whose middle somebody alters the publication comes in part, and a table beside the outbox
//! in the publication has it come without any. Therefore a position knows the single events (`streamed`), and the comparison with the table (`source/pairing.rs`)
//! finds what was left out, by whichever session and source it comes to that.
//!
//! The other way round is the *cover rule* ([`Coverage`]), by which a stream may follow a table: take L, then a snapshot S. A later snapshot E that
//! sees every transaction S had not (`E.xmin >= S.xmax`) sees every commit before L: one that E does not see has its id from after S, so from after L.

mod coverage;
mod identity;
mod journal;
mod moves;
mod progress;
mod seal;
mod seqs;
mod snapshot;
mod xids;

pub(crate) use coverage::Coverage;
pub(crate) use identity::{Change, Identity};
#[cfg(any(test, fuzzing))]
pub(crate) use journal::fuzz_position_journal;
pub(crate) use journal::{Foreign, Journal, Recorded, Replay, Trust};
#[cfg(feature = "cli")]
pub(crate) use moves::GIVEN_UP_MAX;
pub(crate) use progress::{Pair, Progress};
pub(crate) use seal::Seal;
pub(crate) use seqs::SeqSet;
pub(crate) use snapshot::Snapshot;
pub(crate) use xids::XidSet;

use serde::{Deserialize, Serialize};

use crate::postgres::Lsn;

/// Which events are in Kafka; see the [module](self).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Every event of a transaction that it sees.
    pub(crate) seen: Snapshot,
    /// Every event of these.
    pub(crate) also: XidSet,
    /// The events that the log has brought of `also` and `partial`, and maybe some that `seen` sees; none if that is not known: there were too many to remember, or an
    /// earlier version wrote the position. Then all of `also` counts as brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) streamed: Option<SeqSet>,
    /// And the first events of this one.
    pub(crate) partial: Option<Partial>,
    /// And part of what this window of the table holds.
    pub(crate) window: Option<Window>,
    /// Every commit before it is published; zero if that is known of none.
    pub(crate) log: Lsn,
    /// The log up to here holds everything that is published: a server whose log ends earlier has lost some of it.
    pub(crate) reach: Lsn,
    /// The last event published.
    pub(crate) witness: Option<Witness>,
    /// Parked events that were published or given up since, by `seq`, until they are off the table of parked ones (see `parked`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) released: Vec<i64>,
    /// And single events that the operator has given up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) given_up: Vec<GivenUp>,
    /// Events of transactions below this one may be missing from the outbox: whoever moved the position was told.
    #[serde(default, deserialize_with = "transaction_id")]
    pub(crate) forgone: u64,
}

/// An event that is not to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GivenUp {
    #[serde(deserialize_with = "transaction_id")]
    pub(crate) xid: u64,
    pub(crate) seq: i64,
}

/// A transaction that is published in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Partial {
    #[serde(deserialize_with = "transaction_id")]
    pub(crate) xid: u64,
    /// How many of its events, in the order in which it inserted them.
    pub(crate) events: u64,
    /// The largest `seq` among those.
    pub(crate) seq: i64,
}

/// The rows that `to` sees and the position's `seen` does not, read in the order of `seq`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) to: Snapshot,
    /// Those up to this `seq` are published.
    pub(crate) after: i64,
}

/// An event that was published. Retention keeps its row, so that a database in which it is missing is known to have lost commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Witness {
    pub(crate) id: uuid::Uuid,
    pub(crate) seq: i64,
    #[serde(deserialize_with = "transaction_id")]
    pub(crate) xid: u64,
}

/// Reads a transaction's id that the server can have written.
fn transaction_id<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let xid = u64::deserialize(deserializer)?;
    if xid < xids::XID_MAX {
        Ok(xid)
    } else {
        Err(serde::de::Error::custom(format_args!(
            "no transaction has the id {xid}"
        )))
    }
}

impl Position {
    /// Whether the event that transaction `xid` inserted as `seq` is published, or was passed. As `is_published` in the database, which takes a transaction
    /// that the log has brought for whole.
    pub(crate) fn covers(&self, xid: u64, seq: i64) -> bool {
        self.seen.sees(xid)
            || self.has_streamed(xid, seq)
            || self
                .window
                .as_ref()
                .is_some_and(|window| seq <= window.after && window.to.sees(xid))
            || self.gave_up(seq)
    }

    /// Whether the log has brought the event that transaction `xid` inserted as `seq`.
    pub(crate) fn has_streamed(&self, xid: u64, seq: i64) -> bool {
        // By its number alone it cannot be told: an outbox that is truncated may have its numbers begin anew.
        let (also, partial) = (
            self.also.contains(xid),
            self.partial.filter(|partial| partial.xid == xid),
        );
        match &self.streamed {
            Some(streamed) => (also || partial.is_some()) && streamed.contains(seq),
            None => also || partial.is_some_and(|partial| seq <= partial.seq),
        }
    }

    /// The transactions of which the log has brought events that `seen` may not see.
    fn brought(&self) -> XidSet {
        let mut brought = self.also.clone();
        self.partial
            .iter()
            .for_each(|partial| brought.insert(partial.xid));
        brought
    }

    /// Nothing is published.
    pub(crate) fn start() -> Self {
        Self {
            seen: Snapshot::of_nothing(),
            also: XidSet::default(),
            streamed: None,
            partial: None,
            window: None,
            log: Lsn::default(),
            reach: Lsn::default(),
            witness: None,
            released: Vec::new(),
            given_up: Vec::new(),
            forgone: 0,
        }
    }

    /// Whether it is [`start`](Self::start), before which nothing was streamed, whether that is known or not.
    pub(crate) fn is_start(&self) -> bool {
        Self {
            streamed: None,
            ..self.clone()
        } == Self::start()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_covered_by_any_part_of_a_position() {
        let mut position = Position {
            seen: "10:10:".parse().expect("a snapshot"),
            ..Position::start()
        };
        position.also.insert(20);
        position.partial = Some(Partial {
            xid: 30,
            events: 2,
            seq: 5,
        });
        position.window = Some(Window {
            to: "40:42:41".parse().expect("a snapshot"),
            after: 7,
        });
        for (xid, seq) in [(9, 99), (20, 99), (30, 5), (40, 7)] {
            assert!(position.covers(xid, seq), "{xid} {seq}");
        }
        for (xid, seq) in [(10, 99), (30, 99), (40, 8), (41, 7), (42, 1)] {
            assert!(!position.covers(xid, seq), "{xid} {seq}");
        }
        // Known event by event, a transaction that was streamed covers what came of it and no more.
        let mut streamed = SeqSet::default();
        assert!(streamed.insert(99) && streamed.insert(9));
        position.streamed = Some(streamed);
        for (xid, seq) in [(9, 98), (20, 99), (30, 9), (40, 7)] {
            assert!(position.covers(xid, seq), "{xid} {seq}");
        }
        assert!(!position.covers(20, 98) && !position.covers(30, 8) && !position.covers(21, 99));
    }

    #[test]
    fn a_position_that_an_earlier_version_wrote_is_read_and_does_not_know_single_events() {
        let mut position = Position {
            streamed: Some(SeqSet::default()),
            ..Position::start()
        };
        position.also.insert(20);
        let mut written = serde_json::to_value(&position).expect("plain data");
        assert_eq!(written["streamed"], "{}");
        written
            .as_object_mut()
            .expect("an object")
            .remove("streamed");
        let read: Position = serde_json::from_value(written).expect("read");
        assert_eq!(
            read,
            Position {
                streamed: None,
                ..position
            }
        );
        assert!(read.covers(20, 1));
    }
}
