//! Retries after refused connections of a relay that had access before.
//!
//! A password is rotated in the database and in the relay's environment one after the other, and a
//! database may be renamed or created again. A relay that had access therefore retries for a while.
//! Then it ends, because only a new process reads a new password.

use std::time::Duration;

use tokio::time::Instant;

/// Time for which a relay that had access retries. It is longer than an orchestrator takes to
/// deliver a new secret (a minute for a mounted one).
const RETRY_FOR: Duration = Duration::from_secs(120);

/// Maximum interval between two refusals in a row. After a longer one, the relay had access in
/// between.
const SAME_WITHIN: Duration = Duration::from_secs(60);

/// Consecutive refusals.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Option<Row>);

#[derive(Clone, Copy, Debug)]
struct Row {
    first: Instant,
    last: Instant,
}

impl Refusals {
    /// Records a refusal. Returns `true` if the relay may retry.
    pub(crate) fn may_retry(&mut self, now: Instant) -> bool {
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
        assert!(
            [0, 5, 60, 119]
                .into_iter()
                .all(|seconds| refusals.may_retry(at(seconds)))
        );
        assert!(!refusals.may_retry(at(121)));
        assert!(refusals.may_retry(at(3_600)));
    }
}
