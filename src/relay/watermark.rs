//! From "every record below tag N is acknowledged" to "the server may forget the log up to here": pure.

use std::collections::VecDeque;

use super::{ledger::Witness, position::Position};
use crate::postgres::Lsn;

/// Which records belong to which transaction, for those that are not acknowledged yet.
///
/// It holds one entry for each transaction with a record under way, so it is bounded by the window of records under way.
#[derive(Debug)]
pub(crate) struct Watermark {
    complete: VecDeque<Transaction>,
    open: Option<Open>,
    safe: Position,
    confirmed: Lsn,
    witness: Option<Witness>,
}

#[derive(Debug)]
struct Transaction {
    last: Witness,
    /// The tag after its last record.
    tag_end: u64,
    position: Position,
    end_lsn: Lsn,
}

#[derive(Debug)]
struct Open {
    commit_lsn: Lsn,
    /// Events seen so far, skipped ones included.
    seen: u64,
    /// Ordinal of its first record under way, and that record's tag.
    first: Option<(u64, u64)>,
    last: Option<(u64, Witness)>,
}

impl Watermark {
    /// Starts where an earlier run stopped.
    pub(crate) fn new(safe: Position, confirmed: Lsn) -> Self {
        Self { complete: VecDeque::new(), open: None, safe, confirmed, witness: None }
    }

    /// A transaction starts.
    pub(crate) fn begin(&mut self, commit_lsn: Lsn) {
        self.open = Some(Open { commit_lsn, seen: 0, first: None, last: None });
    }

    /// The next event's place; `None` outside of a transaction, which the protocol rules out.
    pub(crate) fn next_event(&self) -> Option<(Lsn, u64)> {
        self.open.as_ref().map(|open| (open.commit_lsn, open.seen))
    }

    /// An event that an earlier run has published already.
    pub(crate) fn skip(&mut self) {
        if let Some(open) = &mut self.open {
            open.seen += 1;
        }
    }

    /// An event that went out as record `tag`.
    pub(crate) fn sent(&mut self, tag: u64, event: Witness) {
        if let Some(open) = &mut self.open {
            open.first.get_or_insert((open.seen, tag));
            open.last = Some((tag, event));
            open.seen += 1;
        }
    }

    /// The transaction is complete.
    pub(crate) fn end(&mut self, end_lsn: Lsn) {
        let Some(open) = self.open.take() else { return };
        match open.last {
            Some((last_tag, last)) => {
                let position = Position { commit_lsn: open.commit_lsn, ordinal: open.seen };
                self.complete.push_back(Transaction { tag_end: last_tag + 1, position, end_lsn, last });
            }
            None => self.idle(end_lsn),
        }
    }

    /// The log up to `end` holds nothing more to publish.
    pub(crate) fn idle(&mut self, end: Lsn) {
        if self.open.is_some() {
            return;
        }
        match self.complete.back_mut() {
            Some(last) => last.end_lsn = last.end_lsn.max(end),
            None => self.confirmed = self.confirmed.max(end),
        }
    }

    /// Takes note that every record below `floor` is acknowledged.
    pub(crate) fn acknowledged(&mut self, floor: u64) {
        while let Some(transaction) = self.complete.pop_front_if(|first| first.tag_end <= floor) {
            self.safe = self.safe.max(transaction.position);
            self.confirmed = self.confirmed.max(transaction.end_lsn);
            self.witness = Some(transaction.last);
        }
        if let (true, Some(Open { commit_lsn, first: Some((ordinal, tag)), .. })) = (self.complete.is_empty(), &self.open)
            && floor > *tag
        {
            self.safe = self.safe.max(Position { commit_lsn: *commit_lsn, ordinal: ordinal + (floor - tag) });
        }
    }

    /// Every event before it is acknowledged.
    pub(crate) fn safe(&self) -> Position {
        self.safe
    }

    /// The last event of the last transaction that is wholly acknowledged.
    pub(crate) fn witness(&self) -> Option<Witness> {
        self.witness
    }

    /// What the server may forget.
    pub(crate) fn confirmed(&self) -> Lsn {
        self.confirmed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WITNESS: Witness = Witness { id: uuid::Uuid::nil(), seq: 0 };

    /// Transactions as (number of events, how many of them are skipped), in commit order at LSN 10, 20, …; ends at 15, 25, ….
    fn transactions() -> impl Strategy<Value = Vec<(u64, u64)>> {
        proptest::collection::vec((0u64..6, 0u64..6), 1..20)
    }

    proptest! {
        #[test]
        fn nothing_is_safe_or_confirmed_before_its_last_record_is_acknowledged(transactions in transactions(), acks in proptest::collection::vec(0u64..12, 0..60)) {
            let mut watermark = Watermark::new(Position::default(), Lsn(0));
            let mut acks = acks.into_iter();
            let (mut sent, mut floor) = (0u64, 0u64);
            // The naive model: every event with its tag (None = skipped).
            let mut history: Vec<(Position, Option<u64>, Lsn)> = Vec::new();
            for (n, &(events, skipped)) in transactions.iter().enumerate() {
                let (commit, end) = (Lsn(10 * (n as u64 + 1)), Lsn(10 * (n as u64 + 1) + 5));
                watermark.begin(commit);
                for ordinal in 0..events {
                    let after = Position { commit_lsn: commit, ordinal: ordinal + 1 };
                    if ordinal < skipped {
                        watermark.skip();
                        history.push((after, None, end));
                    } else {
                        watermark.sent(sent, WITNESS);
                        history.push((after, Some(sent), end));
                        sent += 1;
                    }
                    floor = (floor + acks.next().unwrap_or(0)).min(sent);
                    watermark.acknowledged(floor);
                    for (position, tag, end) in &history {
                        let done = tag.is_none_or(|tag| tag < floor);
                        if !done {
                            prop_assert!(watermark.safe() < *position, "{:?} at floor {floor}", watermark.safe());
                            prop_assert!(watermark.confirmed() < *end);
                        }
                    }
                }
                watermark.end(end);
                watermark.idle(Lsn(end.0 + 1));
            }
            watermark.acknowledged(sent);
            let last_end = Lsn(10 * transactions.len() as u64 + 6);
            prop_assert_eq!(watermark.confirmed(), last_end);
            if let Some((position, ..)) = history.iter().rfind(|(_, tag, _)| tag.is_some()) {
                prop_assert!(watermark.safe() >= *position);
            }
        }
    }

    #[test]
    fn a_keepalive_within_a_transaction_confirms_nothing() {
        let mut watermark = Watermark::new(Position::default(), Lsn(0));
        watermark.begin(Lsn(10));
        watermark.sent(0, WITNESS);
        watermark.idle(Lsn(99));
        watermark.acknowledged(1);
        assert_eq!((watermark.confirmed(), watermark.safe()), (Lsn(0), Position { commit_lsn: Lsn(10), ordinal: 1 }));
    }
}
