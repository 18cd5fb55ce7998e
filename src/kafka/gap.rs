//! Restart offset of a partition whose next record does not exist, and the number of missing
//! records. Pure.

/// Restart of a partition after [`Change::OutOfRange`](super::Change::OutOfRange).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Restarted {
    /// The offset of the first record to read.
    pub(crate) from: i64,
    pub(crate) gap: Gap,
}

/// Records that a member should have read next but cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gap {
    None,
    /// Number of offsets that retention or a deletion of records removed before they were read.
    Removed(i64),
    /// Number of offsets between the end of the partition and the next offset to read. The topic
    /// was created again, or its log was truncated.
    CutOff(i64),
}

/// Returns the restart offset and the gap of a partition with records `low..high` and the next
/// offset `next`.
pub(super) fn restarted(next: Option<i64>, low: i64, high: i64) -> Restarted {
    match next {
        Some(next) if next < low => Restarted {
            from: low,
            gap: Gap::Removed(low - next),
        },
        Some(next) if next > high => Restarted {
            from: low,
            gap: Gap::CutOff(next - high),
        },
        Some(next) => Restarted {
            from: next,
            gap: Gap::None,
        },
        None => Restarted {
            from: low,
            gap: Gap::None,
        },
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
            assert_eq!(
                restarted(next, low, high),
                Restarted { from, gap },
                "{next:?} of {low}..{high}"
            );
        }
    }
}
