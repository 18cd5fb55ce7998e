//! When to read the socket: as bytes come, or after letting it fill. Pure.
//!
//! A walsender whose reader waits in `recv` pays a wake-up for every message it sends; one whose reader naps between
//! reads streams about twice as fast. Behind, the nap is free; at the head it would be latency. So the choice follows how
//! far behind the stream is, by the server's own clock: when it sent a commit against when that commit happened.

use std::time::Duration;

/// Behind from here on. Well above a busy server's send delay, well below what anybody calls lag.
const BEHIND: Duration = Duration::from_millis(20);

/// Far behind from here on: some Kafka transactions long. Nearer, waiting for a fuller batch would only add to the lag.
const FAR_BEHIND: Duration = Duration::from_millis(200);

/// How long to let the socket fill: a few thousand events at the speed of a walsender.
const NAP: Duration = Duration::from_millis(4);

/// A read this large, bytes, says that more is waiting: the next one needs no nap.
const FULL_READ: usize = 48 * 1024;

/// Decides, read by read.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    lag_micros: i64,
}

impl Pace {
    /// A commit was sent at `sent_at`, having happened at `committed_at` (microseconds, the server's clock).
    pub(crate) fn saw_commit(&mut self, sent_at: i64, committed_at: i64) {
        self.lag_micros = sent_at.saturating_sub(committed_at);
    }

    /// The server said that it has nothing more.
    pub(crate) fn saw_idle(&mut self) {
        self.lag_micros = 0;
    }

    /// How far the stream is behind what is committed.
    pub(crate) fn lag(&self) -> Duration {
        Duration::from_micros(self.lag_micros.try_into().unwrap_or(0))
    }

    /// Whether there is more to read than what has come.
    pub(crate) fn is_behind(&self) -> bool {
        self.lag() > BEHIND
    }

    /// Whether there is so much more that a batch had better wait for it.
    pub(crate) fn is_far_behind(&self) -> bool {
        self.lag() > FAR_BEHIND
    }

    /// How long to wait before the next read, after one of `read` bytes.
    pub(crate) fn nap(&self, read: usize) -> Option<Duration> {
        (self.is_behind() && read < FULL_READ).then_some(NAP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_left_to_fill_only_when_behind_and_nearly_empty() {
        let mut pace = Pace::default();
        assert_eq!(pace.nap(600), None);
        pace.saw_commit(1_000_000, 0);
        assert_eq!((pace.nap(600), pace.nap(FULL_READ)), (Some(NAP), None));
        pace.saw_commit(1_000_000, 999_000);
        assert_eq!(pace.nap(600), None);
    }
}
