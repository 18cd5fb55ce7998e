//! Progress of a round while it reads the topics.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::kafka::Part;

/// Number of offsets of a round, and of records that were read. Markers of transactions have
/// offsets too, so fewer records than offsets are read.
#[derive(Debug, Default)]
pub(crate) struct ReadProgress {
    offsets: AtomicU64,
    records: AtomicU64,
}

impl ReadProgress {
    /// Begins a round.
    pub(super) fn begin(&self, parts: &[Part]) {
        let lengths = parts.iter().map(|part| part.to.saturating_sub(part.from));
        let offsets: i64 = lengths.filter(|length| *length > 0).sum();
        self.records.store(0, Ordering::Relaxed);
        self.offsets
            .store(offsets.unsigned_abs(), Ordering::Relaxed);
    }

    /// Counts a record.
    pub(super) fn count(&self) {
        self.records.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of records that were read, and the number of offsets. Both are 0 before
    /// the topics are read.
    pub(crate) fn now(&self) -> (u64, u64) {
        let offsets = self.offsets.load(Ordering::Relaxed);
        (self.records.load(Ordering::Relaxed).min(offsets), offsets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Partition;

    #[test]
    fn a_round_counts_from_zero_and_never_beyond_its_offsets() {
        let part = |from, to| Part {
            partition: Partition {
                topic: "order".into(),
                number: 0,
            },
            from,
            to,
        };
        let progress = ReadProgress::default();
        assert_eq!(progress.now(), (0, 0));
        // The last round has read beyond the end of the second part.
        progress.begin(&[part(5, 7), part(9, 3)]);
        assert_eq!(progress.now(), (0, 2));
        (0..3).for_each(|_| progress.count());
        assert_eq!(progress.now(), (2, 2));
        progress.begin(&[part(0, 10)]);
        assert_eq!(progress.now(), (0, 10));
    }
}
