//! The watermark of a partition: the offset below which all records are finished, and the finished
//! records beyond it. Pure.

use std::collections::VecDeque;

use super::metadata::OffsetMetadata;

/// The records of one partition, starting with the first unfinished one.
#[derive(Debug, Default)]
pub(crate) struct Watermark {
    /// Offsets beyond the commit that an earlier owner had finished.
    restored: OffsetMetadata,
    /// Offset of each record, and whether it is finished.
    records: VecDeque<(i64, bool)>,
    /// Ticket of the first record.
    first: u64,
    /// The offset after the last record.
    end: Option<i64>,
    unfinished: usize,
}

/// Identifies a record, so that it can be marked as finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl Watermark {
    /// Creates a watermark at the `committed` offset. The offsets in `restored` are already
    /// finished.
    pub(crate) fn new(committed: Option<i64>, restored: OffsetMetadata) -> Self {
        Self {
            restored,
            end: committed,
            ..Self::default()
        }
    }

    /// Adds a record. Returns `None` if it was finished before and must not be handled again.
    ///
    /// Offsets ascend as long as the partition stays the same. If an offset is below the last one,
    /// the topic was created again or its log was truncated. Everything stored about earlier
    /// offsets then refers to other records and is discarded.
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

    /// Skips to this offset, because the records before it do not exist any more.
    pub(crate) fn skip_to(&mut self, offset: i64) {
        self.end = Some(self.end.map_or(offset, |end| end.max(offset)));
    }

    /// Marks the record as finished.
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

    /// Returns the offset to commit: everything before it is finished. Returns `None` before the
    /// first record.
    pub(crate) fn position(&self) -> Option<i64> {
        self.records.front().map(|(offset, _)| *offset).or(self.end)
    }

    /// Returns the finished records beyond the position. Offsets without a record (transaction
    /// markers, or records removed by compaction) count as finished if they are between two
    /// finished records.
    pub(crate) fn finished_beyond(&self) -> OffsetMetadata {
        let mut finished = OffsetMetadata::default();
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

    /// Returns the number of records that were added and are not finished.
    pub(crate) fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Returns the number of records from the first unfinished one to the last.
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
            // The model: each offset, and whether it is finished.
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
                let first = model
                    .iter()
                    .find(|(_, finished)| !**finished)
                    .map_or(end, |(offset, _)| *offset);
                prop_assert_eq!(watermark.position(), Some(first));
                prop_assert_eq!(
                    watermark.unfinished(),
                    model.values().filter(|finished| !**finished).count()
                );
            }
            // The state that the next owner of the partition restores.
            let position = watermark.position().expect("there are records");
            let metadata = watermark.finished_beyond().encode(position, None);
            let restored = OffsetMetadata::decode(&metadata, position).expect("it was just written");
            let mut next = Watermark::new(Some(position), restored);
            for (offset, finished) in model.range(position..) {
                prop_assert_eq!(next.add(*offset).is_none(), *finished, "offset {}", offset);
            }
            prop_assert_eq!(next.position(), Some(position));
        }
    }

    #[test]
    fn what_was_known_of_offsets_is_forgotten_when_they_begin_again() {
        let mut restored = OffsetMetadata::default();
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
            "7 and 8 were finished in the earlier topic"
        );
        assert_eq!((watermark.position(), watermark.unfinished()), (Some(1), 8));
    }

    #[test]
    fn a_partition_without_a_record_keeps_what_is_committed() {
        assert_eq!(Watermark::default().position(), None);
        assert_eq!(
            Watermark::new(Some(7), OffsetMetadata::default()).position(),
            Some(7)
        );
    }
}
