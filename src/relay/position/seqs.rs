//! A set of events, by `seq`.

use super::XidSet;

/// Most ranges, about 25 bytes each as text: with those of `also` a position stays below 1 MB, which is what a topic takes as one record.
const RANGES_MAX: usize = 10_000;

/// A set of events, by `seq`, as ranges: numbers are drawn one after the other, so what a stream brings is few of them. It never forgets one, which would
/// be published again: it is full instead.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct SeqSet(XidSet);

impl SeqSet {
    /// Whether the set has it.
    pub(crate) fn contains(&self, seq: i64) -> bool {
        u64::try_from(seq).is_ok_and(|seq| self.0.contains(seq))
    }

    /// Adds one. False if the set is full, or if it is no event's number: a table made for Debezium may have none, and all its events say zero.
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

    /// Adds all of another set.
    pub(super) fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// Those that `other` does not have.
    pub(super) fn without(&self, other: &Self) -> Self {
        Self(self.0.without(&other.0))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many ranges it takes to write it down.
    pub(super) fn ranges(&self) -> usize {
        self.0.ranges()
    }
}

// === impl Display ===

impl std::fmt::Display for SeqSet {
    /// As Postgres reads an `int8multirange`.
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
