//! Evidence about partitions whose first records were deleted: by Kafka's retention, or by a
//! request to delete records. Pure.
//!
//! An event whose record is missing from such a partition was lost or deleted. If the record was
//! deleted, it stood before every record that remains. The first [`SAMPLE`] remaining records of
//! known events then all follow it. A record is accepted as evidence only if *all* of them belong
//! to earlier inserts: this number of events does not overtake another one, unless a block of
//! parked events was released exactly at the start of the partition.

use std::collections::{BTreeMap, BinaryHeap};

use super::entry::PlaceIndex;

/// Number of records at the start of a partition that are considered. More than the usual number of
/// transactions that are open at once, which bounds how far an insert may precede its commit.
const SAMPLE: usize = 256;

/// The first records of the partitions that are trimmed: `(offset, seq)`, the largest on top.
#[derive(Default)]
pub(crate) struct Horizons(BTreeMap<PlaceIndex, BinaryHeap<(i64, i64)>>);

impl Horizons {
    /// Creates the evidence for these partitions. Others are not tracked.
    pub(crate) fn of(places: impl Iterator<Item = PlaceIndex>) -> Self {
        Self(places.map(|place| (place, BinaryHeap::new())).collect())
    }

    /// Adds a record of a known event.
    pub(crate) fn matched(&mut self, place: PlaceIndex, offset: i64, seq: i64) {
        let Some(first) = self.0.get_mut(&place) else {
            return;
        };
        if first.len() < SAMPLE {
            first.push((offset, seq));
        } else if first.peek().is_some_and(|(last, _)| offset < *last) {
            first.pop();
            first.push((offset, seq));
        }
    }

    /// Returns `true` if the record of the event `seq` may have been deleted from the partition.
    pub(crate) fn may_be_trimmed(&self, place: PlaceIndex, seq: i64) -> bool {
        self.0.get(&place).is_some_and(|first| {
            first.len() < SAMPLE || first.iter().any(|(_, earlier)| *earlier > seq)
        })
    }

    /// Returns `true` if some partition is trimmed.
    pub(crate) fn is_any(&self) -> bool {
        !self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_younger_than_the_first_remaining_ones_cannot_have_been_deleted() {
        let mut horizons = Horizons::of([1].into_iter());
        let sample = SAMPLE as i64;
        for offset in (0..2 * sample).rev() {
            horizons.matched(1, 100 + offset, 1_000 + offset);
            horizons.matched(2, 100 + offset, 1_000 + offset);
        }
        assert!(horizons.may_be_trimmed(1, 999));
        assert!(horizons.may_be_trimmed(1, 1_000 + sample - 2));
        assert!(!horizons.may_be_trimmed(1, 1_000 + sample));
        // The partition is complete.
        assert!(!horizons.may_be_trimmed(2, 999));
    }

    #[test]
    fn few_records_are_no_evidence() {
        let mut horizons = Horizons::of([1].into_iter());
        horizons.matched(1, 100, 1);
        assert!(horizons.may_be_trimmed(1, 1_000_000) && horizons.is_any());
    }
}
