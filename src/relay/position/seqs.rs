//! A set of events, by `seq`.

use super::XidSet;

/// Maximum number of ranges, of about 25 bytes each as text. Together with the ranges of
/// `extra_xids`, a position stays below 1 MB, the default limit of a topic for one record.
const RANGES_MAX: usize = 10_000;

/// A set of events, by `seq`, as ranges. Numbers are assigned one after the other, so streamed
/// events form few ranges. A forgotten event would be published again, so a full set refuses new
/// events instead of forgetting old ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct SeqSet(XidSet);

impl SeqSet {
    /// Returns `true` if the set contains `seq`.
    pub(crate) fn contains(&self, seq: i64) -> bool {
        u64::try_from(seq).is_ok_and(|seq| self.0.contains(seq))
    }

    /// Adds an event. Returns `false` if the set is full, or if `seq` is not an event's number: a
    /// table made for Debezium may have no numbers, and all of its events have zero.
    pub(crate) fn insert(&mut self, seq: i64) -> bool {
        let Some(seq) = u64::try_from(seq).ok().filter(|seq| *seq > 0) else {
            return false;
        };
        if self.0.ranges() == RANGES_MAX {
            return false;
        }
        self.0.insert(seq);
        true
    }

    /// Adds all events of another set.
    pub(super) fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// Returns the events that `other` does not contain.
    pub(super) fn without(&self, other: &Self) -> Self {
        Self(self.0.without(&other.0))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of ranges that the set is written as.
    pub(super) fn ranges(&self) -> usize {
        self.0.ranges()
    }
}

// === impl Display ===

impl std::fmt::Display for SeqSet {
    /// Writes the set in the format that Postgres reads as `int8multirange`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_full_rather_than_forget_and_takes_no_number_that_is_none() {
        let mut set = SeqSet::default();
        assert!(!set.insert(0) && !set.insert(-1) && !set.contains(0) && !set.contains(-1));
        let most = i64::try_from(RANGES_MAX).expect("few");
        assert!((0..most).all(|n| set.insert(1 + 2 * n)));
        assert!(
            !set.insert(3 * most)
                && set.contains(1)
                && set.contains(2 * most - 1)
                && !set.contains(2)
        );
    }
}
