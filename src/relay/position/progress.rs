//! The position of what has been *sent*: moves on event by event, and is stored once what was sent is safe.

use super::{Partial, Position, Snapshot, Window, Witness, XidSet};
use crate::postgres::Lsn;

/// Most streamed events remembered for the comparison with the table; beyond it a pair settles without one.
const REMEMBERED_MAX: usize = 200_000;

/// Where a relay is while it works.
#[derive(Debug)]
pub(crate) struct Progress {
    position: Position,
    open: Option<Open>,
    pair: Option<(Snapshot, Lsn)>,
    streamed: Streamed,
}

/// The transaction whose events the stream brings now.
#[derive(Debug)]
struct Open {
    xid: u64,
    skip: Skip,
    /// Its events so far, skipped ones included.
    events: u64,
    last_seq: i64,
}

/// Which events of a transaction are published already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skip {
    None,
    First(u64),
    All,
}

/// What the stream has brought of transactions that no settled snapshot sees yet.
#[derive(Debug, Default)]
struct Streamed {
    events: Vec<(u64, i64)>,
    overflowed: bool,
    /// Transactions that an earlier session streamed: their events are not in `events`.
    before: XidSet,
}

/// A pair whose snapshot is about to become the position's, and what the stream brought of what it sees.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) seen: Snapshot,
    pub(crate) to: Snapshot,
    /// `(xid, seq)` of the events that were streamed since; none if there were too many to remember.
    pub(crate) streamed: Option<Vec<(u64, i64)>>,
    /// Transactions to leave out of the comparison.
    pub(crate) unknown: XidSet,
}

impl Progress {
    /// Goes on from where everything is safe.
    pub(crate) fn new(position: Position) -> Self {
        let mut before = position.also.clone();
        // Its first events were streamed by an earlier session too.
        position.partial.iter().for_each(|partial| before.insert(partial.xid));
        Self { position, open: None, pair: None, streamed: Streamed { before, ..Streamed::default() } }
    }

    /// The position after what has been sent so far.
    pub(crate) fn position(&self) -> Position {
        let mut position = self.position.clone();
        if let Some(open) = &self.open
            && open.skip != Skip::All
            && open.events > 0
        {
            position.partial = Some(Partial { xid: open.xid, events: open.events, seq: open.last_seq });
        }
        position
    }

    /// The position, without the transaction that is open.
    pub(crate) fn settled(&self) -> &Position {
        &self.position
    }

    // What was parked.

    /// A parked event was sent, or given up.
    pub(crate) fn released(&mut self, seq: i64) {
        self.position.released.push(seq);
    }

    /// These are off the table of parked events.
    pub(crate) fn forget_released(&mut self, seqs: &[i64]) {
        self.position.released.retain(|seq| !seqs.contains(seq));
    }

    // The log.

    /// The stream brings a transaction.
    pub(crate) fn begin(&mut self, xid: u32) {
        let xid = self.position.seen.widen(xid);
        let skip = if self.position.seen.sees(xid) || self.position.also.contains(xid) {
            Skip::All
        } else {
            self.position.partial.filter(|partial| partial.xid == xid).map_or(Skip::None, |partial| Skip::First(partial.events))
        };
        let last_seq = self.position.partial.filter(|partial| partial.xid == xid).map_or(0, |partial| partial.seq);
        self.open = Some(Open { xid, skip, events: 0, last_seq });
    }

    /// Whether the transaction's next event is to be published; one that is not is counted here.
    pub(crate) fn wants_event(&mut self) -> bool {
        let Some(open) = &mut self.open else { return false };
        let wanted = match open.skip {
            Skip::All => false,
            Skip::First(events) => open.events >= events,
            Skip::None => true,
        };
        if !wanted {
            open.events += 1;
        }
        wanted
    }

    /// Whether the transaction's next event, this one, was given up by the operator; it is counted here.
    pub(crate) fn gives_up(&mut self, seq: i64) -> bool {
        let given_up = self.position.gave_up(seq);
        if given_up && let Some(open) = &mut self.open {
            open.events += 1;
            open.last_seq = open.last_seq.max(seq);
            self.streamed.note(open.xid, seq);
        }
        given_up
    }

    /// The transaction's next event was sent.
    pub(crate) fn sent(&mut self, id: uuid::Uuid, seq: i64) {
        let Some(open) = &mut self.open else { return };
        open.events += 1;
        open.last_seq = open.last_seq.max(seq);
        self.position.witness = Some(Witness { id, seq, xid: open.xid });
        self.streamed.note(open.xid, seq);
    }

    /// The transaction is complete. The stream is in commit order, so every commit before its end is published.
    pub(crate) fn end(&mut self, end_lsn: Lsn) {
        let Some(open) = self.open.take() else { return };
        if open.skip != Skip::All {
            self.position.also.insert(open.xid);
            self.position.reach = self.position.reach.max(end_lsn);
        }
        if self.position.partial.is_some_and(|partial| partial.xid == open.xid) {
            self.position.partial = None;
        }
        self.position.log = self.position.log.max(end_lsn);
    }

    /// The log up to `end` holds nothing more to publish.
    pub(crate) fn idle(&mut self, end: Lsn) {
        if self.open.is_none() {
            self.position.log = self.position.log.max(end);
        }
    }

    /// A snapshot, and the log's insert position that was read after it. One pair is waited for at a time.
    pub(crate) fn pair(&mut self, snapshot: Snapshot, insert: Lsn) {
        self.pair.get_or_insert((snapshot, insert));
    }

    /// The pair that the stream has reached, to be compared with the table and then given to [`settle`](Self::settle).
    pub(crate) fn reached(&mut self) -> Option<Pair> {
        if self.open.is_some() {
            return None;
        }
        let (to, _) = self.pair.take_if(|(_, insert)| self.position.log >= *insert)?;
        let streamed = (!self.streamed.overflowed).then(|| {
            self.streamed.events.iter().filter(|(xid, _)| to.sees(*xid) && !self.streamed.before.contains(*xid)).copied().collect()
        });
        Some(Pair { seen: self.position.seen.clone(), to, streamed, unknown: self.streamed.before.clone() })
    }

    /// Everything that `snapshot` sees is published.
    pub(crate) fn settle(&mut self, snapshot: Snapshot) {
        self.position.also = self.position.also.unseen_by(&snapshot);
        self.streamed.settle(&snapshot);
        if self.position.partial.is_some_and(|partial| snapshot.sees(partial.xid)) {
            self.position.partial = None;
        }
        self.position.given_up.retain(|event| !snapshot.sees(event.xid));
        self.position.seen = snapshot;
    }

    // The table.

    /// A window of the table is read: what `to` sees; `insert` is the log's insert position that was read after it.
    pub(crate) fn open_window(&mut self, to: Snapshot, insert: Lsn) {
        self.position.reach = self.position.reach.max(insert);
        self.position.window = Some(Window { to, after: 0 });
    }

    /// Whether a row of the window is to be published.
    pub(crate) fn wants_row(&self, xid: u64, seq: i64) -> bool {
        let partly = |partial: Partial| partial.xid == xid && seq <= partial.seq;
        !self.position.also.contains(xid) && !self.position.partial.is_some_and(partly) && !self.position.gave_up(seq)
    }

    /// The window's rows up to this one are sent or were not wanted.
    pub(crate) fn passed(&mut self, seq: i64, sent: Option<Witness>) {
        if let Some(window) = &mut self.position.window {
            window.after = seq;
        }
        self.position.witness = sent.or(self.position.witness);
    }

    /// The window is read to its end. `covered` is the furthest log position of which its snapshot sees every commit before it.
    pub(crate) fn close_window(&mut self, covered: Option<Lsn>) {
        let Some(window) = self.position.window.take() else { return };
        self.settle(window.to);
        self.position.log = self.position.log.max(covered.unwrap_or_default());
    }
}

impl Streamed {
    fn note(&mut self, xid: u64, seq: i64) {
        if self.events.len() < REMEMBERED_MAX {
            self.events.push((xid, seq));
        } else {
            self.overflowed = true;
        }
    }

    fn settle(&mut self, snapshot: &Snapshot) {
        self.events.retain(|(xid, _)| !snapshot.sees(*xid));
        self.before = self.before.unseen_by(snapshot);
        if std::mem::take(&mut self.overflowed) {
            // What was not remembered is unknown like what an earlier session streamed.
            self.overflowed = !self.events.is_empty();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_that_an_earlier_session_began_is_left_out_of_the_comparison_with_the_table() {
        let seen: Snapshot = "10:10:".parse().expect("a snapshot");
        let partial = Some(Partial { xid: 12, events: 2, seq: 2 });
        let mut progress = Progress::new(Position { seen, partial, ..Position::start() });
        progress.pair("20:20:".parse().expect("a snapshot"), Lsn(50));
        progress.begin(12);
        assert!(!progress.wants_event() && !progress.wants_event() && progress.wants_event());
        progress.sent(uuid::Uuid::nil(), 3);
        progress.end(Lsn(60));
        progress.begin(13);
        progress.sent(uuid::Uuid::nil(), 4);
        progress.end(Lsn(70));
        let pair = progress.reached().expect("passed");
        assert_eq!(pair.streamed, Some(vec![(13, 4)]));
        assert!(pair.unknown.contains(12) && !pair.unknown.contains(13));
    }
}
