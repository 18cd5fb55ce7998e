//! Refused connections of a relay that had access before: for how long they are retried.
//!
//! A password is rotated in the database and in the relay's environment one after the other, and a database may be renamed or
//! recreated. So a relay that had access tries again for a while. Then it ends: only a new process reads a new password.

use std::time::Duration;

use tokio::time::Instant;

/// How long a relay that had access retries. Longer than an orchestrator takes to hand over a new secret (a minute for a
/// mounted one).
const RETRY_FOR: Duration = Duration::from_secs(120);

/// Refusals further apart than this do not belong together: the relay had access in between.
const SAME_WITHIN: Duration = Duration::from_secs(60);

/// The refusals in a row.
#[derive(Debug, Default)]
pub(super) struct Refusals(Option<Row>);

#[derive(Clone, Copy, Debug)]
struct Row {
    first: Instant,
    last: Instant,
}

impl Refusals {
    /// Takes note of a refusal; whether to try again.
    pub(super) fn may_retry(&mut self, now: Instant) -> bool {
        let first = match self.0 {
            Some(Row { first, last }) if now.duration_since(last) <= SAME_WITHIN => first,
            _ => now,
        };
        self.0 = Some(Row { first, last: now });
        now.duration_since(first) < RETRY_FOR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A password that is rotated while the relay runs.
    #[test]
    fn refusals_in_a_row_are_retried_for_a_while_and_each_row_anew() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!([0, 5, 60, 119].into_iter().all(|seconds| refusals.may_retry(at(seconds))));
        assert!(!refusals.may_retry(at(121)));
        assert!(refusals.may_retry(at(3_600)));
    }
}
