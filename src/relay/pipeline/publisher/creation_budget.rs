//! Limits on the creation of topics. Pure.
//!
//! Event types are data. A mistake in a writer (an id used as a type) must not fill a cluster with
//! topics, and the creation of topics must not delay the events of other topics.

use std::time::Duration;

use tokio::time::Instant;

/// Number of topics that are created while an event waits, at first and per minute. Each creation
/// takes about a tenth of a second and delays all events. Further topics are created in the
/// background, and their events are parked meanwhile.
const WAITED_FOR: f64 = 10.0;

const MINUTE: Duration = Duration::from_secs(60);

/// Number of topics that may be created now.
#[derive(Debug)]
pub(super) struct CreationBudget {
    all: Bucket,
    waited_for: Bucket,
}

/// Tokens that return at an even rate.
#[derive(Debug)]
struct Bucket {
    per_minute: f64,
    tokens: f64,
    at: Instant,
}

/// Answer to a request to create a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MayCreate {
    Yes,
    /// Not now: the topic must be created in the background rather than while an event waits.
    Beside,
    /// The limit per minute is reached.
    No,
}

impl Bucket {
    fn new(per_minute: f64) -> Self {
        Self {
            per_minute,
            tokens: per_minute,
            at: Instant::now(),
        }
    }

    fn refill(&mut self) {
        let passed = self.at.elapsed().as_secs_f64() / MINUTE.as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_minute).min(self.per_minute);
        self.at = Instant::now();
    }
}

impl CreationBudget {
    pub(super) fn new(per_minute: u32) -> Self {
        Self {
            all: Bucket::new(f64::from(per_minute)),
            waited_for: Bucket::new(WAITED_FOR.min(f64::from(per_minute))),
        }
    }

    /// Takes one topic from the budget if it may be created. `waits` means that an event waits for
    /// it.
    pub(super) fn take(&mut self, waits: bool) -> MayCreate {
        self.all.refill();
        self.waited_for.refill();
        if self.all.tokens < 1.0 {
            return MayCreate::No;
        }
        if waits {
            if self.waited_for.tokens < 1.0 {
                return MayCreate::Beside;
            }
            self.waited_for.tokens -= 1.0;
        }
        self.all.tokens -= 1.0;
        MayCreate::Yes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_minute_has_so_many_topics_and_few_of_them_are_waited_for() {
        let mut budget = CreationBudget::new(30);
        let count = |budget: &mut CreationBudget, waits, verdict| {
            (0..100)
                .take_while(|_| budget.take(waits) == verdict)
                .count()
        };
        assert_eq!(count(&mut budget, true, MayCreate::Yes), 10);
        assert_eq!(budget.take(true), MayCreate::Beside);
        assert_eq!(count(&mut budget, false, MayCreate::Yes), 20);
        assert_eq!(
            (budget.take(false), budget.take(true)),
            (MayCreate::No, MayCreate::No)
        );
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(
            (
                count(&mut budget, true, MayCreate::Yes),
                count(&mut budget, false, MayCreate::Yes)
            ),
            (3, 7)
        );
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert_eq!(count(&mut budget, false, MayCreate::Yes), 30);
    }
}
