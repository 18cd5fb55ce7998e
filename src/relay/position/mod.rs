//! Position of a relay: the set of published events. All code in this folder is pure.
//!
//! A [`Position`] records *which transactions* are published, rather than the offset of one reader.
//! The same position therefore serves the log and the table. A relay can change its source, lose
//! its slot or follow a new configuration without a gap and without a repeat:
//!
//! ```text
//! published = the transactions that `snapshot` sees     a snapshot, as Postgres writes it
//!           ∪ the transactions in `extra_xids`          delivered by the log, not yet seen by a
//!                                                       settled snapshot; its events in
//!                                                       `streamed_seqs`
//!           ∪ the first `events` events of `partial_tx` a Kafka transaction may end within a
//!                                                       transaction of Postgres
//!           ∪ rows up to `after` that `window.to` sees  a window of the table that is being read
//!           ∪ the events in `skipped`                   by the operator, one by one
//! ```
//!
//! `resume_lsn` is a position for reading the log: every commit before it is published. It is only
//! a hint. Whether an event from the stream is published or skipped depends on the id of its
//! transaction.
//!
//! *Pairing* advances `snapshot`: take a snapshot S, then read the log's insert position L. Once
//! every commit before L is published, everything that S sees is published. (The flush position
//! would be wrong: a transaction may be visible before its commit record is flushed.)
//!
//! The stream may deliver a transaction without all of its events. Postgres decides for each insert
//! whether a publication contains it, by the catalog at that place of the log. If the publication
//! is altered while a transaction runs, the stream delivers a part of the transaction. If the
//! publication contains another table but not the outbox, the stream delivers the transaction
//! without any event. A position therefore records single events (`streamed_seqs`), and the
//! comparison with the table (`source/reconcile.rs`) finds the omitted ones in a later session or
//! through another source too.
//!
//! The *cover rule* ([`Coverage`]) works in the opposite direction: it decides where a stream may
//! follow the table. Read L, then take a snapshot S. A later snapshot E for which every transaction
//! from before the end of S has ended (`E.xmin >= S.xmax`) sees every commit before L: a
//! transaction that E does not see got its id after S, and therefore after L.

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

/// The set of published events; see the [module](self). The encoded names are those of the first
/// version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// All events of the transactions that this snapshot sees are published.
    #[serde(rename = "seen")]
    pub(crate) snapshot: Snapshot,
    /// The stream has delivered these transactions.
    #[serde(rename = "also")]
    pub(crate) extra_xids: XidSet,
    /// The events that the log delivered of `extra_xids` and `partial_tx`, and possibly some that
    /// `snapshot` sees. `None` if they are unknown: there were too many to record, or an earlier
    /// version wrote the position. All events of `extra_xids` then count as delivered.
    #[serde(rename = "streamed", default, skip_serializing_if = "Option::is_none")]
    pub(crate) streamed_seqs: Option<SeqSet>,
    /// The first events of this transaction are published.
    #[serde(rename = "partial")]
    pub(crate) partial_tx: Option<Partial>,
    /// A part of this window of the table is published.
    pub(crate) window: Option<Window>,
    /// Every commit before this log position is published. Zero if unknown.
    #[serde(rename = "log")]
    pub(crate) resume_lsn: Lsn,
    /// The log up to this position contains everything that is published. A server whose log ends
    /// earlier has lost a part of it.
    #[serde(rename = "reach")]
    pub(crate) published_lsn: Lsn,
    /// The last published event.
    pub(crate) witness: Option<Witness>,
    /// Parked events that were published or discarded since, by `seq`, until they are deleted from
    /// the table of parked events (see `parked`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) released: Vec<i64>,
    /// Single events that the operator has given up.
    #[serde(rename = "given_up", default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) skipped: Vec<GivenUp>,
    /// Events of transactions below this one may be missing from the outbox. The command that moved
    /// the position has reported it.
    #[serde(rename = "forgone", default, deserialize_with = "transaction_id")]
    pub(crate) floor: u64,
}

/// An event that must not be published.
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
    /// Number of its published events, in the order of their inserts.
    pub(crate) events: u64,
    /// The largest `seq` among them.
    pub(crate) seq: i64,
}

/// The rows that `to` sees and the position's `snapshot` does not, in the order of `seq`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) to: Snapshot,
    /// Rows up to this `seq` are published.
    pub(crate) after: i64,
}

/// A published event. Retention keeps its row, so a database without the row must have lost
/// commits, unless another program deleted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Witness {
    pub(crate) id: uuid::Uuid,
    pub(crate) seq: i64,
    #[serde(deserialize_with = "transaction_id")]
    pub(crate) xid: u64,
}

/// Deserializes a transaction id, and rejects ids that no server assigns.
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
    /// Returns `true` if the event that transaction `xid` inserted as `seq` is published or given
    /// up. Corresponds to `is_published` in the database, which treats every transaction from the
    /// log as whole.
    pub(crate) fn covers(&self, xid: u64, seq: i64) -> bool {
        self.snapshot.sees(xid)
            || self.has_streamed(xid, seq)
            || self
                .window
                .as_ref()
                .is_some_and(|window| seq <= window.after && window.to.sees(xid))
            || self.gave_up(seq)
    }

    /// Returns `true` if the log has delivered the event that transaction `xid` inserted as `seq`.
    pub(crate) fn has_streamed(&self, xid: u64, seq: i64) -> bool {
        // The number alone is not sufficient: a truncated outbox may restart its numbers.
        let (also, partial) = (
            self.extra_xids.contains(xid),
            self.partial_tx.filter(|partial| partial.xid == xid),
        );
        match &self.streamed_seqs {
            Some(streamed) => (also || partial.is_some()) && streamed.contains(seq),
            None => also || partial.is_some_and(|partial| seq <= partial.seq),
        }
    }

    /// Returns the transactions whose events the log has delivered and that `snapshot` may not see.
    fn brought(&self) -> XidSet {
        let mut brought = self.extra_xids.clone();
        self.partial_tx
            .iter()
            .for_each(|partial| brought.insert(partial.xid));
        brought
    }

    /// Returns the position where nothing is published.
    pub(crate) fn start() -> Self {
        Self {
            snapshot: Snapshot::of_nothing(),
            extra_xids: XidSet::default(),
            streamed_seqs: None,
            partial_tx: None,
            window: None,
            resume_lsn: Lsn::default(),
            published_lsn: Lsn::default(),
            witness: None,
            released: Vec::new(),
            skipped: Vec::new(),
            floor: 0,
        }
    }

    /// Returns `true` if nothing is published, as in [`start`](Self::start), with `streamed_seqs`
    /// known or not.
    pub(crate) fn is_start(&self) -> bool {
        Self {
            streamed_seqs: None,
            ..self.clone()
        } == Self::start()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoded_names_are_those_of_the_first_version() {
        let position = Position {
            streamed_seqs: Some(SeqSet::default()),
            skipped: vec![GivenUp { xid: 1, seq: 2 }],
            ..Position::start()
        };
        let written = serde_json::to_value(position).expect("plain data");
        for name in [
            "seen", "also", "streamed", "partial", "log", "reach", "given_up", "forgone",
        ] {
            assert!(written.get(name).is_some(), "{name} is missing: {written}");
        }
    }

    #[test]
    fn an_event_is_covered_by_any_part_of_a_position() {
        let mut position = Position {
            snapshot: "10:10:".parse().expect("a snapshot"),
            ..Position::start()
        };
        position.extra_xids.insert(20);
        position.partial_tx = Some(Partial {
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
        // If single events are known, a transaction covers only its events in `streamed_seqs`.
        let mut streamed = SeqSet::default();
        assert!(streamed.insert(99) && streamed.insert(9));
        position.streamed_seqs = Some(streamed);
        for (xid, seq) in [(9, 98), (20, 99), (30, 9), (40, 7)] {
            assert!(position.covers(xid, seq), "{xid} {seq}");
        }
        assert!(!position.covers(20, 98) && !position.covers(30, 8) && !position.covers(21, 99));
    }

    #[test]
    fn a_position_that_an_earlier_version_wrote_is_read_and_does_not_know_single_events() {
        let mut position = Position {
            streamed_seqs: Some(SeqSet::default()),
            ..Position::start()
        };
        position.extra_xids.insert(20);
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
                streamed_seqs: None,
                ..position
            }
        );
        assert!(read.covers(20, 1));
    }
}
