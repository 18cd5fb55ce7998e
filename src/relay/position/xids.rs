//! A set of transaction ids, as ranges. Its text form is Postgres's `int8multirange`, so SQL can
//! query it too.

use std::{fmt, str::FromStr};

use super::Snapshot;

/// Maximum number of ranges. Beyond it, the oldest range is forgotten. Its events would be
/// published again if the log were lost at that time.
const RANGES_MAX: usize = 20_000;

/// Exclusive upper bound of transaction ids, because the server's own text forms are `bigint`. The
/// successor of a valid id never overflows.
pub(super) const XID_MAX: u64 = i64::MAX.cast_unsigned();

/// A set of transaction ids: ascending ranges that do not touch. Ids arrive nearly in order, so an
/// insert is usually an append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct XidSet {
    ranges: Vec<(u64, u64)>,
}

/// Text that is not a set of transaction ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a set of transaction ids such as {{[5,7],[9,9]}}")]
pub(crate) struct XidSetError(String);

impl XidSet {
    /// Returns `true` if the set contains `xid`.
    pub(crate) fn contains(&self, xid: u64) -> bool {
        let at = self.ranges.partition_point(|(_, last)| *last < xid);
        self.ranges.get(at).is_some_and(|(first, _)| *first <= xid)
    }

    /// Adds an id.
    pub(crate) fn insert(&mut self, xid: u64) {
        let at = self.ranges.partition_point(|(_, last)| *last < xid);
        if self.ranges.get(at).is_some_and(|(first, _)| *first <= xid) {
            return;
        }
        let joins_left = at > 0 && self.ranges[at - 1].1 + 1 == xid;
        let joins_right = self
            .ranges
            .get(at)
            .is_some_and(|(first, _)| *first == xid + 1);
        match (joins_left, joins_right) {
            (true, true) => {
                self.ranges[at - 1].1 = self.ranges[at].1;
                self.ranges.remove(at);
            }
            (true, false) => self.ranges[at - 1].1 = xid,
            (false, true) => self.ranges[at].0 = xid,
            (false, false) => self.ranges.insert(at, (xid, xid)),
        }
        if self.ranges.len() > RANGES_MAX {
            self.ranges.remove(0);
        }
    }

    /// Adds all ids of another set, range by range, because a range of a deserialized set may be
    /// arbitrarily wide.
    pub(crate) fn extend(&mut self, other: &Self) {
        if other.ranges.iter().all(|(first, last)| first == last) {
            return other.ranges.iter().for_each(|(xid, _)| self.insert(*xid));
        }
        let mut all = [std::mem::take(&mut self.ranges), other.ranges.clone()].concat();
        all.sort_unstable();
        for (first, last) in all {
            match self.ranges.last_mut() {
                Some((_, end)) if first <= *end + 1 => *end = last.max(*end),
                _ => self.ranges.push((first, last)),
            }
        }
        let excess = self.ranges.len().saturating_sub(RANGES_MAX);
        self.ranges.drain(..excess);
    }

    /// Returns the ids that the snapshot does not see.
    pub(crate) fn unseen_by(&self, snapshot: &Snapshot) -> Self {
        let mut unseen = Self::default();
        snapshot
            .in_progress()
            .iter()
            .filter(|xid| self.contains(**xid))
            .for_each(|xid| unseen.insert(*xid));
        let from = snapshot.xmax();
        let tail = self
            .ranges
            .iter()
            .filter(|(_, last)| *last >= from)
            .map(|(first, last)| ((*first).max(from), *last));
        for (first, last) in tail {
            match unseen.ranges.last_mut() {
                Some(before) if before.1 + 1 == first => before.1 = last,
                _ => unseen.ranges.push((first, last)),
            }
        }
        unseen
    }

    /// Returns the ids that `other` does not contain.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let mut left = Self::default();
        for &(first, last) in &self.ranges {
            let mut from = first;
            let at = other.ranges.partition_point(|(_, end)| *end < first);
            for &(taken, end) in other.ranges[at..]
                .iter()
                .take_while(|(taken, _)| *taken <= last)
            {
                if taken > from {
                    left.ranges.push((from, taken - 1));
                }
                from = from.max(end + 1);
            }
            if from <= last {
                left.ranges.push((from, last));
            }
        }
        left
    }

    /// Returns the ids below `first`.
    pub(crate) fn below(&self, first: u64) -> Self {
        let kept = self.ranges.iter().filter(|(from, _)| *from < first);
        Self {
            ranges: kept
                .map(|(from, last)| (*from, (*last).min(first - 1)))
                .collect(),
        }
    }

    /// Returns the first id from `xid` on that the set does not contain.
    pub(crate) fn first_absent(&self, xid: u64) -> u64 {
        let at = self.ranges.partition_point(|(_, last)| *last < xid);
        self.ranges
            .get(at)
            .filter(|(first, _)| *first <= xid)
            .map_or(xid, |(_, last)| last + 1)
    }

    /// Returns the last id.
    pub(crate) fn last(&self) -> Option<u64> {
        self.ranges.last().map(|(_, last)| *last)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Returns `true` if one more id may make the set forget its oldest range.
    pub(super) fn is_full(&self) -> bool {
        self.ranges.len() >= RANGES_MAX
    }

    /// Returns the number of ranges that the set is written as.
    pub(crate) fn ranges(&self) -> usize {
        self.ranges.len()
    }
}

// === impl FromStr, Display, serde ===

impl FromStr for XidSet {
    type Err = XidSetError;

    /// Reads the format of Postgres's `int8multirange`, or the closed bounds of this type's
    /// `Display`.
    fn from_str(text: &str) -> Result<Self, XidSetError> {
        let wrong = || XidSetError(text.to_owned());
        let mut rest = text
            .trim()
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
            .ok_or_else(wrong)?;
        let mut set = Self::default();
        while !rest.is_empty() {
            let end = rest.find([']', ')']).ok_or_else(wrong)?;
            let (first, last) = rest[..end]
                .strip_prefix('[')
                .and_then(|pair| pair.split_once(','))
                .ok_or_else(wrong)?;
            let first: u64 = first.parse().map_err(|_| wrong())?;
            let last = last.parse::<u64>().ok().and_then(|last| {
                if rest[end..].starts_with(')') {
                    last.checked_sub(1)
                } else {
                    Some(last)
                }
            });
            let last = last
                .filter(|last| *last >= first && *last < XID_MAX)
                .ok_or_else(wrong)?;
            if set
                .ranges
                .last()
                .is_some_and(|(_, before)| *before >= first)
            {
                return Err(wrong());
            }
            set.ranges.push((first, last));
            rest = rest[end + 1..].trim_start_matches(',');
        }
        Ok(set)
    }
}

impl fmt::Display for XidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (at, (first, last)) in self.ranges.iter().enumerate() {
            write!(f, "{}[{first},{last}]", if at == 0 { "" } else { "," })?;
        }
        f.write_str("}")
    }
}

impl serde::Serialize for XidSet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for XidSet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(
            mine in proptest::collection::vec(3u64..80, 0..60),
            theirs in proptest::collection::vec(3u64..80, 0..60),
        ) {
            let set = |ids: &[u64]| {
                let mut set = XidSet::default();
                ids.iter().for_each(|xid| set.insert(*xid));
                set
            };
            let (ours, other) = (set(&mine), set(&theirs));
            let (naive, naive_other): (BTreeSet<u64>, BTreeSet<u64>) =
                (mine.into_iter().collect(), theirs.into_iter().collect());
            let mut both = ours.clone();
            both.extend(&other);
            let left = ours.without(&other);
            for xid in 0..90 {
                prop_assert_eq!(ours.contains(xid), naive.contains(&xid));
                prop_assert_eq!(
                    both.contains(xid),
                    naive.contains(&xid) || naive_other.contains(&xid)
                );
                prop_assert_eq!(
                    left.contains(xid),
                    naive.contains(&xid) && !naive_other.contains(&xid)
                );
            }
            prop_assert!(ours.ranges.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
            prop_assert_eq!(ours.to_string().parse::<XidSet>(), Ok(ours));
        }

        #[test]
        fn what_a_snapshot_does_not_see_is_kept(
            ids in proptest::collection::vec(3u64..60, 0..60),
            low in 3u64..50,
            span in 0u64..20,
            open in proptest::collection::btree_set(0u64..20, 0..5),
        ) {
            let open: Vec<String> = open
                .iter()
                .filter(|xid| **xid < span)
                .map(|xid| (low + xid).to_string())
                .collect();
            let snapshot: Snapshot = format!("{low}:{}:{}", low + span, open.join(","))
                .parse()
                .expect("a snapshot");
            let mut set = XidSet::default();
            ids.iter().for_each(|xid| set.insert(*xid));
            let unseen = set.unseen_by(&snapshot);
            for xid in 0..70 {
                prop_assert_eq!(
                    unseen.contains(xid),
                    ids.contains(&xid) && !snapshot.sees(xid)
                );
            }
        }
    }

    #[test]
    fn a_wide_range_is_added_at_once_and_an_impossible_id_is_refused() {
        let wide: XidSet = "{[1,9223372036854775806]}".parse().expect("a set");
        let mut set = XidSet::default();
        set.insert(7);
        set.extend(&wide);
        assert_eq!(set, wide);
        assert_eq!(set.without(&wide), XidSet::default());
        assert_eq!(set.first_absent(5), XID_MAX);
        for text in [
            "{[1,9223372036854775807]}",
            "{[18446744073709551615,18446744073709551615]}",
            "{[9,1]}",
            "{[1,0)}",
            "{[0,0)}",
        ] {
            assert!(text.parse::<XidSet>().is_err(), "{text}");
        }
        let many = XidSet {
            ranges: (0..RANGES_MAX as u64 + 9)
                .map(|n| (10 * n, 10 * n + 1))
                .collect(),
        };
        let mut set = XidSet::default();
        set.extend(&many);
        assert_eq!(set.ranges(), RANGES_MAX);
    }

    #[test]
    fn it_forgets_its_oldest_rather_than_grow_without_end() {
        let mut set = XidSet::default();
        (0..=RANGES_MAX as u64).for_each(|n| set.insert(10 + 2 * n));
        assert!(!set.contains(10) && set.contains(12) && set.contains(10 + 2 * RANGES_MAX as u64));
    }
}
