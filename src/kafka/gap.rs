//! The place at which a partition is read again whose next record does not exist, and the records that are missing. Pure.

/// A partition that is read again after [`Change::OutOfRange`](super::Change::OutOfRange).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Restarted {
    /// The offset from which it is read.
    pub(crate) from: i64,
    pub(crate) gap: Gap,
}

/// The records that a member should have read next and cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gap {
    None,
    /// So many offsets were removed before they were read, by retention or by a deletion of records.
    Removed(i64),
    /// The partition ends before the offset to read next, by so many: the topic was created again, or its log was cut off.
    CutOff(i64),
}

/// The offset at which a partition is read again whose next offset is `next` and whose records are `low..high`, and the gap.
pub(super) fn restarted(next: Option<i64>, low: i64, high: i64) -> Restarted {
    match next {
        Some(next) if next < low => Restarted { from: low, gap: Gap::Removed(low - next) },
        Some(next) if next > high => Restarted { from: low, gap: Gap::CutOff(next - high) },
        Some(next) => Restarted { from: next, gap: Gap::None },
        None => Restarted { from: low, gap: Gap::None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_read_again_from_the_first_record_that_exists_and_the_gap_is_known() {
        for (next, low, high, from, gap) in [
            (Some(3), 18, 30, 18, Gap::Removed(15)),
            (Some(18), 18, 30, 18, Gap::None),
            (Some(30), 18, 30, 30, Gap::None),
            (Some(40), 0, 5, 0, Gap::CutOff(35)),
            (None, 18, 30, 18, Gap::None),
        ] {
            assert_eq!(restarted(next, low, high), Restarted { from, gap }, "{next:?} of {low}..{high}");
        }
    }
}
