//! Up to where everything is finished, and what is finished beyond. Pure.

use std::collections::VecDeque;

use super::metadata::Finished;

/// The records of one partition from the first that is not finished on.
#[derive(Debug, Default)]
pub(crate) struct Watermark {
    /// What an earlier run had finished beyond its gap.
    restored: Finished,
    /// Each record's offset, and whether it is finished.
    records: VecDeque<(i64, bool)>,
    /// The ticket of the first of them.
    first: u64,
    /// The offset after the last record that came.
    end: Option<i64>,
    unfinished: usize,
}

/// Which record, to say that it is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl Watermark {
    /// Begins where `committed` says, of which `restored` is finished already.
    pub(crate) fn new(committed: Option<i64>, restored: Finished) -> Self {
        Self {
            restored,
            end: committed,
            ..Self::default()
        }
    }

    /// A record comes. `None` if it was finished before: it is not to be handled.
    ///
    /// Offsets ascend as long as the partition is the same. One that is behind the last is of a topic that was made anew, or of a log that was cut off: what was known of offsets is of other records.
    pub(crate) fn add(&mut self, offset: i64) -> Option<Ticket> {
        if self.end.is_some_and(|end| offset < end) {
            let first = self.first + self.records.len() as u64;
            *self = Self {
                first,
                ..Self::default()
            };
        }
        let finished = self.restored.contains(offset);
        let ticket = self.first + self.records.len() as u64;
        self.records.push_back((offset, finished));
        self.end = Some(offset + 1);
        if finished {
            self.advance();
            return None;
        }
        self.unfinished += 1;
        Some(Ticket(ticket))
    }

    /// No record comes that is before this offset: they do not exist any more.
    pub(crate) fn skip_to(&mut self, offset: i64) {
        self.end = Some(self.end.map_or(offset, |end| end.max(offset)));
    }

    /// The record is finished.
    pub(crate) fn finish(&mut self, ticket: Ticket) {
        let at = ticket
            .0
            .checked_sub(self.first)
            .and_then(|at| usize::try_from(at).ok());
        let Some((_, finished)) = at.and_then(|at| self.records.get_mut(at)) else {
            return;
        };
        if !std::mem::replace(finished, true) {
            self.unfinished -= 1;
            self.advance();
        }
    }

    /// The offset to commit: everything before it is finished. `None` before the first record.
    pub(crate) fn position(&self) -> Option<i64> {
        self.records.front().map(|(offset, _)| *offset).or(self.end)
    }

    /// What is finished beyond the position. Offsets that have no record (of transactions, or compacted away) count as finished between two that are.
    pub(crate) fn finished_beyond(&self) -> Finished {
        let mut finished = Finished::default();
        let mut run: Option<(i64, i64)> = None;
        for (offset, done) in &self.records {
            match (done, &mut run) {
                (true, Some((_, end))) => *end = offset + 1,
                (true, None) => run = Some((*offset, offset + 1)),
                (false, Some((start, end))) => {
                    finished.push_range(*start, *end);
                    run = None;
                }
                (false, None) => {}
            }
        }
        if let Some((start, end)) = run {
            finished.push_range(start, end);
        }
        finished
    }

    /// How many records came and are not finished.
    pub(crate) fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// How many records there are from the first unfinished one on.
    pub(crate) fn span(&self) -> usize {
        self.records.len()
    }

    fn advance(&mut self) {
        while self.records.front().is_some_and(|(_, finished)| *finished) {
            self.records.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_position_is_the_first_that_is_not_finished_and_a_restart_repeats_no_finished_record(
            gaps in prop::collection::vec(1..4i64, 1..100),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..100),
        ) {
            let mut watermark = Watermark::default();
            // The model: each offset and whether it is finished.
            let (mut model, mut tickets, mut offset) = (BTreeMap::new(), Vec::new(), 5);
            for gap in gaps {
                tickets.push((offset, watermark.add(offset).expect("nothing is restored")));
                model.insert(offset, false);
                offset += gap;
            }
            for index in order {
                let (offset, ticket) = tickets[index.index(tickets.len())];
                watermark.finish(ticket);
                model.insert(offset, true);
                let end = model.keys().next_back().expect("not empty") + 1;
                let first = model.iter().find(|(_, finished)| !**finished).map_or(end, |(offset, _)| *offset);
                prop_assert_eq!(watermark.position(), Some(first));
                prop_assert_eq!(watermark.unfinished(), model.values().filter(|finished| !**finished).count());
            }
            // What the next owner of the partition sees.
            let position = watermark.position().expect("there are records");
            let metadata = watermark.finished_beyond().encode(position);
            let restored = Finished::decode(&metadata, position).expect("it was just written");
            let mut next = Watermark::new(Some(position), restored);
            for (offset, finished) in model.range(position..) {
                prop_assert_eq!(next.add(*offset).is_none(), *finished, "offset {}", offset);
            }
            prop_assert_eq!(next.position(), Some(position));
        }
    }

    #[test]
    fn what_was_known_of_offsets_is_forgotten_when_they_begin_again() {
        let mut restored = Finished::default();
        restored.push_range(7, 9);
        let mut watermark = Watermark::new(Some(5), restored);
        let old = watermark.add(5).expect("not finished");
        let new = watermark.add(0).expect("not finished");
        assert_eq!((watermark.position(), watermark.unfinished()), (Some(0), 1));
        watermark.finish(old);
        assert_eq!((watermark.position(), watermark.unfinished()), (Some(0), 1));
        watermark.finish(new);
        assert!(
            (1..9).all(|offset| watermark.add(offset).is_some()),
            "7 and 8 were finished in another topic"
        );
        assert_eq!((watermark.position(), watermark.unfinished()), (Some(1), 8));
    }

    #[test]
    fn a_partition_without_a_record_keeps_what_is_committed() {
        assert_eq!(Watermark::default().position(), None);
        assert_eq!(
            Watermark::new(Some(7), Finished::default()).position(),
            Some(7)
        );
    }
}
