//! Pacing of the reads from the replication socket. Pure.
//!
//! A walsender whose reader waits in `recv` pays a wake-up for every message that it sends. If the
//! reader pauses between reads, the walsender streams about twice as fast. The pause is free while
//! the stream is behind and adds latency at the head of the log. The decision therefore depends on
//! the lag by the server's own clock: the time between a commit and its sending.

use std::time::Duration;

/// A stream with more lag than this is behind. The value is well above the send delay of a busy
/// server and well below a lag that operators notice.
const BEHIND: Duration = Duration::from_millis(20);

/// A stream with more lag than this is far behind. The value is the duration of some Kafka
/// transactions. With less lag, a wait for a fuller batch would only increase the lag.
const FAR_BEHIND: Duration = Duration::from_millis(200);

/// Pause that lets the socket fill: a few thousand events at the speed of a walsender.
const NAP: Duration = Duration::from_millis(4);

/// Size of a read, in bytes, that indicates more waiting data. No pause follows such a read.
const FULL_READ: usize = 48 * 1024;

/// The current lag of a stream.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    lag_micros: i64,
}

impl Pace {
    /// Records that a commit of the time `committed_at` was sent at `sent_at` (microseconds, the
    /// server's clock).
    pub(crate) fn saw_commit(&mut self, sent_at: i64, committed_at: i64) {
        self.lag_micros = sent_at.saturating_sub(committed_at);
    }

    /// Records that the server has nothing more to send.
    pub(crate) fn saw_idle(&mut self) {
        self.lag_micros = 0;
    }

    /// Returns the lag of the stream behind the commits.
    pub(crate) fn lag(&self) -> Duration {
        Duration::from_micros(self.lag_micros.try_into().unwrap_or(0))
    }

    /// Returns `true` if the server has more to send than has arrived.
    pub(crate) fn is_behind(&self) -> bool {
        self.lag() > BEHIND
    }

    /// Returns `true` if a batch should wait for more events.
    pub(crate) fn is_far_behind(&self) -> bool {
        self.lag() > FAR_BEHIND
    }

    /// Returns the pause before the next read, after a read of `read` bytes.
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
