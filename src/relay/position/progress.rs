//! Position after the events that were *sent*. It advances event by event, and is stored once the
//! sent events are durable.

use super::{Partial, Position, SeqSet, Snapshot, Window, Witness, XidSet};
use crate::postgres::Lsn;

/// Progress of a running relay.
#[derive(Debug)]
pub(crate) struct Progress {
    position: Position,
    open: Option<Open>,
    pair: Option<(Snapshot, Lsn)>,
    generation: Generation,
}

/// The transaction that the stream delivers at present.
#[derive(Debug)]
struct Open {
    xid: u64,
    skip: Skip,
    /// Number of its events so far, including skipped ones.
    events: u64,
    last_seq: i64,
}

/// Events of a transaction that are already published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skip {
    None,
    First(u64),
    All,
}

/// Bookkeeping that lets the position's `streamed_seqs` forget events.
///
/// Events are forgotten one generation at a time: a generation is dropped once a settled snapshot
/// sees all of its transactions. The transaction of a single event is not recorded, because that
/// would need memory per event.
#[derive(Debug, Default)]
struct Generation {
    /// Transactions of the older generation that no settled snapshot sees yet. If `streamed_seqs`
    /// is `None`: the transactions whose events are unknown.
    elders: XidSet,
    /// Events of the younger generation.
    young: SeqSet,
}

/// A pair whose snapshot is about to become the position's `snapshot`, and the streamed events of
/// the transactions that it sees.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) seen: Snapshot,
    pub(crate) to: Snapshot,
    /// The events that were streamed since `snapshot`, and possibly other published events. `None`
    /// if the unknown transactions are too many to record.
    pub(crate) streamed: Option<SeqSet>,
    /// Transactions to leave out of the comparison, because their streamed events are unknown.
    pub(crate) unknown: XidSet,
}

impl Progress {
    /// Continues from a durable position.
    pub(crate) fn new(mut position: Position) -> Self {
        // Transactions from earlier sessions.
        let elders = position.brought();
        if elders.is_empty() {
            // No earlier transaction is outstanding, so event tracking can start from an empty set.
            position.streamed_seqs.get_or_insert_default();
        }
        Self {
            position,
            open: None,
            pair: None,
            generation: Generation {
                elders,
                young: SeqSet::default(),
            },
        }
    }

    /// Returns the position after the events sent so far.
    pub(crate) fn position(&self) -> Position {
        let mut position = self.position.clone();
        if let Some(open) = &self.open
            && open.events > 0
            // While the stream repeats published events, `partial_tx` stays as it is.
            && !open.skip.covers(open.events)
        {
            position.partial_tx = Some(Partial {
                xid: open.xid,
                events: open.events,
                seq: open.last_seq,
            });
        }
        position
    }

    /// Returns the position without the open transaction.
    pub(crate) fn settled(&self) -> &Position {
        &self.position
    }

    // Parked events.

    /// Records that a parked event was sent or discarded.
    pub(crate) fn released(&mut self, seq: i64) {
        self.position.released.push(seq);
    }

    /// Forgets events that are deleted from the table of parked events.
    pub(crate) fn forget_released(&mut self, seqs: &[i64]) {
        self.position.released.retain(|seq| !seqs.contains(seq));
    }

    // The log.

    /// Records that the stream starts to deliver a transaction.
    pub(crate) fn begin(&mut self, xid: u32) {
        let xid = self.position.snapshot.widen(xid);
        let skip = if self.position.snapshot.sees(xid) || self.position.extra_xids.contains(xid) {
            Skip::All
        } else {
            self.position
                .partial_tx
                .filter(|partial| partial.xid == xid)
                .map_or(Skip::None, |partial| Skip::First(partial.events))
        };
        let last_seq = self
            .position
            .partial_tx
            .filter(|partial| partial.xid == xid)
            .map_or(0, |partial| partial.seq);
        self.open = Some(Open {
            xid,
            skip,
            events: 0,
            last_seq,
        });
    }

    /// Returns `true` if the transaction's next event must be published. Otherwise the event is
    /// counted here.
    pub(crate) fn wants_event(&mut self) -> bool {
        let Some(open) = &mut self.open else {
            return false;
        };
        let wanted = !open.skip.covers(open.events + 1);
        if !wanted {
            open.events += 1;
        }
        wanted
    }

    /// Returns `true` if the operator has given up the transaction's next event, `seq`. Such an
    /// event is counted here.
    pub(crate) fn gives_up(&mut self, seq: i64) -> bool {
        let given_up = self.position.gave_up(seq);
        if given_up && let Some(open) = &mut self.open {
            open.events += 1;
            open.last_seq = open.last_seq.max(seq);
            self.note(seq);
        }
        given_up
    }

    /// Records that the transaction's next event was sent.
    pub(crate) fn sent(&mut self, id: uuid::Uuid, seq: i64) {
        let Some(open) = &mut self.open else { return };
        open.events += 1;
        open.last_seq = open.last_seq.max(seq);
        self.position.witness = Some(Witness {
            id,
            seq,
            xid: open.xid,
        });
        self.note(seq);
    }

    /// Records that an event which the stream had omitted was sent.
    pub(crate) fn sent_late(&mut self, xid: u64, seq: i64) {
        self.note(seq);
        // If `streamed_seqs` is `None`, adding the transaction would mark all of its events as
        // published.
        if self.position.streamed_seqs.is_some() {
            self.position.extra_xids.insert(xid);
        }
    }

    fn note(&mut self, seq: i64) {
        let Generation { elders, young } = &mut self.generation;
        if self
            .position
            .streamed_seqs
            .as_mut()
            .is_none_or(|streamed| streamed.insert(seq))
            && young.insert(seq)
        {
            return;
        }
        // From here on the events are unknown, until a settled snapshot sees all affected
        // transactions.
        if self.position.streamed_seqs.take().is_some() || !young.is_empty() {
            (*elders, *young) = (self.position.brought(), SeqSet::default());
        }
        self.open.iter().for_each(|open| elders.insert(open.xid));
    }

    /// Records that the transaction is complete. The stream is in commit order, so every commit
    /// before its end is published.
    pub(crate) fn end(&mut self, end_lsn: Lsn) {
        let Some(open) = self.open.take() else { return };
        if open.skip != Skip::All {
            self.position.extra_xids.insert(open.xid);
            self.position.published_lsn = self.position.published_lsn.max(end_lsn);
        }
        if self
            .position
            .partial_tx
            .is_some_and(|partial| partial.xid == open.xid)
        {
            self.position.partial_tx = None;
        }
        self.position.resume_lsn = self.position.resume_lsn.max(end_lsn);
    }

    /// Records that the log up to `end` contains no further event to publish.
    pub(crate) fn idle(&mut self, end: Lsn) {
        if self.open.is_none() {
            self.position.resume_lsn = self.position.resume_lsn.max(end);
        }
    }

    /// Records a snapshot and the log's insert position, read after it. Only one pair is awaited at
    /// a time.
    pub(crate) fn pair(&mut self, snapshot: Snapshot, insert: Lsn) {
        self.pair.get_or_insert((snapshot, insert));
    }

    /// Returns the awaited pair if the stream has reached it. The caller compares it with the table
    /// and then passes it to [`settle`](Self::settle).
    pub(crate) fn reached(&mut self) -> Option<Pair> {
        if self.open.is_some() {
            return None;
        }
        let (to, _) = self
            .pair
            .take_if(|(_, insert)| self.position.resume_lsn >= *insert)?;
        let Generation { elders, young } = &self.generation;
        let (streamed, unknown) = match &self.position.streamed_seqs {
            Some(streamed) => (Some(streamed.clone()), XidSet::default()),
            None => ((!elders.is_full()).then(|| young.clone()), elders.clone()),
        };
        Some(Pair {
            seen: self.position.snapshot.clone(),
            to,
            streamed,
            unknown,
        })
    }

    /// Records that everything that `snapshot` sees is published.
    pub(crate) fn settle(&mut self, snapshot: Snapshot) {
        self.position.extra_xids = self.position.extra_xids.unseen_by(&snapshot);
        self.generation.elders = self.generation.elders.unseen_by(&snapshot);
        if self
            .position
            .partial_tx
            .is_some_and(|partial| snapshot.sees(partial.xid))
        {
            self.position.partial_tx = None;
        }
        self.position
            .skipped
            .retain(|event| !snapshot.sees(event.xid));
        self.position.snapshot = snapshot;
        if self.generation.elders.is_empty() {
            self.position.streamed_seqs = Some(std::mem::take(&mut self.generation.young));
            self.generation.elders = self.position.brought();
        }
    }

    // The table.

    /// Starts a window of the table: the rows that `to` sees. `insert` is the log's insert
    /// position, read after the snapshot.
    pub(crate) fn open_window(&mut self, to: Snapshot, insert: Lsn) {
        // The stream ends here. The window continues a transaction that the stream delivered in
        // part.
        self.position = self.position();
        self.open = None;
        self.position.published_lsn = self.position.published_lsn.max(insert);
        self.position.window = Some(Window { to, after: 0 });
    }

    /// Returns `true` if a row of the window must be published.
    pub(crate) fn wants_row(&self, xid: u64, seq: i64) -> bool {
        !self.position.has_streamed(xid, seq) && !self.position.gave_up(seq)
    }

    /// Records that the window's rows up to `seq` are sent or were not needed.
    pub(crate) fn passed(&mut self, seq: i64, sent: Option<Witness>) {
        if let Some(window) = &mut self.position.window {
            window.after = seq;
        }
        self.position.witness = sent.or(self.position.witness);
    }

    /// Records that the window is read to its end. `covered` is the highest log position before
    /// which its snapshot sees every commit.
    pub(crate) fn close_window(&mut self, covered: Option<Lsn>) {
        let Some(window) = self.position.window.take() else {
            return;
        };
        self.settle(window.to);
        self.position.resume_lsn = self.position.resume_lsn.max(covered.unwrap_or_default());
    }
}

impl Skip {
    /// Returns `true` if all of the transaction's first `events` events are already published.
    fn covers(self, events: u64) -> bool {
        match self {
            Self::None => false,
            Self::First(published) => events <= published,
            Self::All => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().expect("a snapshot")
    }

    fn seqs(seqs: &[i64]) -> SeqSet {
        let mut set = SeqSet::default();
        assert!(seqs.iter().all(|seq| set.insert(*seq)));
        set
    }

    /// Streams a transaction with these events.
    fn stream(progress: &mut Progress, xid: u32, events: &[i64]) {
        progress.begin(xid);
        for seq in events {
            if progress.wants_event() {
                progress.sent(uuid::Uuid::nil(), *seq);
            }
        }
        progress.end(Lsn(u64::from(xid)));
    }

    #[test]
    fn a_relay_that_has_published_nothing_stands_at_the_start() {
        assert!(
            Position::start().is_start() && Progress::new(Position::start()).settled().is_start()
        );
        let mut progress = Progress::new(Position::start());
        stream(&mut progress, 11, &[1]);
        assert!(!progress.settled().is_start());
    }

    #[test]
    fn what_an_earlier_session_streamed_is_compared_event_by_event() {
        let mut earlier = Progress::new(Position {
            snapshot: snapshot("10:10:"),
            ..Position::start()
        });
        stream(&mut earlier, 11, &[1]);
        earlier.begin(12);
        earlier.sent(uuid::Uuid::nil(), 3);
        let mut progress = Progress::new(earlier.position());
        progress.pair(snapshot("20:20:"), Lsn(13));
        stream(&mut progress, 12, &[3, 4]);
        stream(&mut progress, 13, &[6]);
        let pair = progress.reached().expect("passed");
        // The publication left out 2 of transaction 11 and 5 of transaction 12, so these are
        // missing.
        assert_eq!(
            (pair.streamed, pair.unknown),
            (Some(seqs(&[1, 3, 4, 6])), XidSet::default())
        );
        // A window of the table would find them too.
        let wanted = |progress: &Progress| {
            [(11, 1), (11, 2), (12, 4), (12, 5)].map(|(xid, seq)| progress.wants_row(xid, seq))
        };
        assert_eq!(wanted(&progress), [false, true, false, true]);
        // An event that was published late is not published again if the session ends before the
        // pair is settled.
        progress.sent_late(11, 2);
        progress.sent_late(14, 7);
        let next = Progress::new(progress.position());
        assert_eq!(wanted(&next), [false, false, false, true]);
        assert!(!next.wants_row(14, 7) && next.wants_row(14, 8));
    }

    #[test]
    fn of_a_position_that_does_not_know_single_events_whole_transactions_are_left_out_of_the_comparison_until_a_snapshot_sees_them()
     {
        let mut position = Position {
            snapshot: snapshot("10:10:"),
            ..Position::start()
        };
        position.extra_xids.insert(11);
        position.partial_tx = Some(Partial {
            xid: 12,
            events: 2,
            seq: 2,
        });
        let mut progress = Progress::new(position);
        assert!(
            !progress.wants_row(11, 9) && !progress.wants_row(12, 2) && progress.wants_row(12, 3)
        );
        progress.pair(snapshot("13:13:"), Lsn(13));
        stream(&mut progress, 12, &[1, 2, 3]);
        stream(&mut progress, 13, &[4]);
        let pair = progress.reached().expect("passed");
        assert_eq!(pair.streamed, Some(seqs(&[3, 4])));
        assert!(
            pair.unknown.contains(11) && pair.unknown.contains(12) && !pair.unknown.contains(13)
        );
        progress.settle(pair.to);
        assert_eq!(progress.position().streamed_seqs, Some(seqs(&[3, 4])));
    }

    #[test]
    fn events_are_forgotten_once_a_settled_snapshot_sees_their_transactions_and_not_before() {
        let mut progress = Progress::new(Position {
            snapshot: snapshot("10:10:"),
            ..Position::start()
        });
        stream(&mut progress, 11, &[1]);
        stream(&mut progress, 12, &[2]);
        // Transaction 11 is committed and not visible yet.
        progress.settle(snapshot("11:13:11"));
        assert!(!progress.wants_row(11, 1));
        stream(&mut progress, 14, &[3]);
        progress.settle(snapshot("11:15:11"));
        stream(&mut progress, 16, &[5]);
        progress.settle(snapshot("11:17:11"));
        assert!(!progress.wants_row(11, 1));
        progress.settle(snapshot("18:18:"));
        progress.settle(snapshot("19:19:"));
        assert_eq!(progress.position().streamed_seqs, Some(SeqSet::default()));
    }

    #[test]
    fn a_stream_without_numbers_and_one_of_too_many_pieces_count_whole_transactions() {
        let mut progress = Progress::new(Position {
            snapshot: snapshot("10:10:"),
            ..Position::start()
        });
        stream(&mut progress, 11, &[1]);
        stream(&mut progress, 12, &[0]);
        assert!(
            !progress.wants_row(11, 7) && !progress.wants_row(12, 8) && progress.wants_row(13, 9)
        );
        progress.settle(snapshot("13:13:"));
        assert_eq!(progress.position().streamed_seqs, Some(SeqSet::default()));
        progress.begin(14);
        (0..30_000).for_each(|n| progress.sent(uuid::Uuid::nil(), 10 + 2 * n));
        progress.end(Lsn(14));
        assert_eq!(progress.position().streamed_seqs, None);
        progress.pair(snapshot("16:16:"), Lsn(14));
        stream(&mut progress, 15, &[9]);
        let pair = progress.reached().expect("passed");
        assert!(
            pair.unknown.contains(14)
                && !pair.unknown.contains(15)
                && pair
                    .streamed
                    .is_some_and(|streamed| streamed.contains(9) && !streamed.contains(10))
        );
    }

    #[test]
    fn a_transaction_of_which_the_stream_brought_a_part_is_not_repeated_from_the_table() {
        let mut progress = Progress::new(Position {
            snapshot: snapshot("10:10:"),
            ..Position::start()
        });
        progress.begin(11);
        progress.sent(uuid::Uuid::nil(), 1);
        progress.open_window(snapshot("12:12:"), Lsn(90));
        assert!(!progress.wants_row(11, 1) && progress.wants_row(11, 2));
        assert_eq!(
            progress.settled().partial_tx,
            Some(Partial {
                xid: 11,
                events: 1,
                seq: 1
            })
        );
    }

    #[test]
    fn a_position_does_not_go_back_while_the_stream_brings_once_more_what_is_published_of_a_transaction()
     {
        let partial = Some(Partial {
            xid: 11,
            events: 2,
            seq: 2,
        });
        let mut progress = Progress::new(Position {
            snapshot: snapshot("10:10:"),
            partial_tx: partial,
            ..Position::start()
        });
        progress.begin(11);
        for _ in 0..2 {
            assert!(!progress.wants_event());
            assert_eq!(progress.position().partial_tx, partial);
        }
        assert!(progress.wants_event());
        progress.sent(uuid::Uuid::nil(), 3);
        assert_eq!(
            progress.position().partial_tx,
            Some(Partial {
                xid: 11,
                events: 3,
                seq: 3
            })
        );
    }
}
