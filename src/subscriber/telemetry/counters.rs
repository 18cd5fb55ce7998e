//! Counters of a subscriber's events and attempts.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// The counters of an event type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    Handled,
    Duplicates,
    UnknownTypes,
    Skipped,
    FailedAttempts,
    Parked,
    Retried,
    DeadLettered,
    Discarded,
    Conflicting,
    RefusedLetters,
}

impl Count {
    const ALL: [Self; 11] = [
        Self::Handled,
        Self::Duplicates,
        Self::UnknownTypes,
        Self::Skipped,
        Self::FailedAttempts,
        Self::Parked,
        Self::Retried,
        Self::DeadLettered,
        Self::Discarded,
        Self::Conflicting,
        Self::RefusedLetters,
    ];
}

/// The counters of one type. Threads write to separate shards, because contention for a single
/// counter would cost more than the rest of an event.
#[derive(Debug, Default)]
pub(crate) struct Counters([Shard; SHARDS]);

/// The counters of some threads. Processors fetch two cache lines at a time, so shards are aligned
/// to that size.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    counts: [AtomicU64; Count::ALL.len()],
    attempts: Times<100>,
}

/// Number of shards: the number of threads on a typical machine. With more threads, some share a
/// shard.
const SHARDS: usize = 8;

/// Returns the index of the current thread's shard. Shards are assigned to threads in turn.
fn shard() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static OWN: usize = THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS);
    OWN.with(|own| *own)
}

/// A lock-free histogram of durations. The bounds of its buckets double, starting with
/// `FIRST_MICROS` microseconds. A value of 100 covers 0.1 ms to 13 s, from a handler without I/O to
/// one that is about to time out.
#[derive(Debug, Default)]
pub(crate) struct Times<const FIRST_MICROS: u64> {
    buckets: [AtomicU64; BOUNDS + 1],
    sum_nanos: AtomicU64,
}

/// Number of bounds of a histogram, without the infinite one.
const BOUNDS: usize = 18;

impl Counters {
    pub(crate) fn get(&self, count: Count) -> u64 {
        self.0
            .iter()
            .map(|shard| shard.counts[count as usize].load(Ordering::Relaxed))
            .sum()
    }

    pub(crate) fn add(&self, count: Count, n: usize) {
        self.0[shard()].counts[count as usize].fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Records the duration of an attempt.
    pub(crate) fn attempted(&self, time: Duration) {
        self.0[shard()].attempts.observe(time);
    }

    /// See [`Times::read`].
    #[cfg(feature = "metrics")]
    pub(crate) fn attempts(&self) -> (f64, Vec<(f64, u64)>) {
        let mut all = self.0.iter().map(|shard| shard.attempts.read());
        let (mut sum, mut buckets) = all.next().unwrap_or_default();
        for (seconds, counts) in all {
            sum += seconds;
            buckets
                .iter_mut()
                .zip(counts)
                .for_each(|(all, (_, count))| all.1 += count);
        }
        (sum, buckets)
    }
}

impl<const FIRST_MICROS: u64> Times<FIRST_MICROS> {
    pub(crate) fn observe(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[Self::bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Returns the first bucket whose bound is at least this duration.
    fn bucket(nanos: u64) -> usize {
        let units = nanos.div_ceil(FIRST_MICROS * 1_000).max(1);
        let doublings = u64::BITS - (units - 1).leading_zeros();
        BOUNDS.min(doublings as usize)
    }

    /// Returns the sum in seconds, and for each bucket its bound in seconds and its count.
    #[cfg(feature = "metrics")]
    pub(crate) fn read(&self) -> (f64, Vec<(f64, u64)>) {
        let bound = |at: usize| {
            if at == BOUNDS {
                f64::MAX
            } else {
                (FIRST_MICROS << at) as f64 / 1e6
            }
        };
        let buckets = self
            .buckets
            .iter()
            .enumerate()
            .map(|(at, count)| (bound(at), count.load(Ordering::Relaxed)))
            .collect();
        (
            Duration::from_nanos(self.sum_nanos.load(Ordering::Relaxed)).as_secs_f64(),
            buckets,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_count_is_found_by_its_number() {
        assert!(
            Count::ALL
                .iter()
                .enumerate()
                .all(|(at, count)| *count as usize == at)
        );
    }

    #[test]
    fn a_time_is_counted_in_the_first_bucket_whose_bound_is_not_below_it() {
        for (micros, bucket) in [
            (0, 0),
            (100, 0),
            (101, 1),
            (200, 1),
            (201, 2),
            (400, 2),
            (13_107_200, 17),
            (13_107_201, 18),
            (u64::MAX / 1_000, 18),
        ] {
            assert_eq!(Times::<100>::bucket(micros * 1_000), bucket, "{micros} µs");
        }
    }

    #[test]
    fn what_threads_count_apart_is_told_as_one() {
        let counters = Counters::default();
        std::thread::scope(|scope| {
            for n in 1..=2 * SHARDS as u64 {
                let counters = &counters;
                scope.spawn(move || {
                    counters.add(Count::Handled, 1);
                    counters.attempted(Duration::from_millis(n));
                });
            }
        });
        assert_eq!(counters.get(Count::Handled), 2 * SHARDS as u64);
        #[cfg(feature = "metrics")]
        {
            let (sum, buckets) = counters.attempts();
            assert!((sum - 0.136).abs() < 1e-9, "{sum}");
            let counts: Vec<u64> = buckets
                .iter()
                .map(|(_, count)| *count)
                .filter(|count| *count > 0)
                .collect();
            // Up to 1.6, 3.2, 6.4, 12.8 and 25.6 ms.
            assert_eq!(counts, [1, 2, 3, 6, 4]);
        }
    }
}
