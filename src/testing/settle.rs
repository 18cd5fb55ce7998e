//! Virtual time of the in-memory bus: it advances while nothing else can happen, and its amount is
//! bounded.

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::TestBus;
use crate::subscriber::{Ended, InMemory, VirtualClock};

/// Real time without progress after which a pause is cut short although another event is running.
/// That event may wait for the paused one.
const STANDSTILL: Duration = Duration::from_millis(20);

/// Real time for which the bus waits for handlers that neither pause nor end.
const REAL_TIME_MAX: Duration = Duration::from_secs(60);

/// Virtual time that one call may use.
const VIRTUAL_TIME_MAX: Duration = Duration::from_secs(5 * 366 * 86_400);

/// Number of pauses per running event within which one running event must end.
const PAUSES_MAX: usize = 5_000;

/// Number of events that one call may handle, in addition to ten for each event pending when it
/// starts.
const EVENTS_MAX: usize = 100_000;

/// Number of events that a reason names.
const NAMED_MAX: usize = 5;

/// Reason why a [`TestBus`] does not settle.
#[derive(Clone, Debug)]
pub struct Unsettled {
    reason: String,
    under_way: Vec<String>,
}

impl fmt::Display for Unsettled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the bus does not settle: {}", self.reason)?;
        if self.under_way.is_empty() {
            return Ok(());
        }
        let more = self.under_way.len().saturating_sub(NAMED_MAX);
        let named: Vec<&str> = self
            .under_way
            .iter()
            .take(NAMED_MAX)
            .map(String::as_str)
            .collect();
        write!(f, "; running: {}", named.join(", "))?;
        if more > 0 {
            write!(f, " and {more} more")?;
        }
        Ok(())
    }
}

impl std::error::Error for Unsettled {}

/// Running events, each with the index of its member.
pub(super) type Running = FuturesUnordered<Pin<Box<dyn Future<Output = (usize, Ended)> + Send>>>;

/// Resources used by one call.
struct Used {
    began: Duration,
    events: usize,
    events_max: usize,
    /// Pauses since the last event ended.
    pauses: usize,
    quiet_since: Instant,
}

impl Used {
    fn new(clock: &VirtualClock, waiting: usize) -> Self {
        Self {
            began: clock.now(),
            events: 0,
            events_max: EVENTS_MAX.saturating_add(waiting.saturating_mul(10)),
            pauses: 0,
            quiet_since: Instant::now(),
        }
    }

    fn ended(&mut self, events: usize) {
        if events > 0 {
            self.events += events;
            self.pauses = 0;
            self.quiet_since = Instant::now();
        }
    }

    fn paused(&mut self) {
        self.pauses += 1;
        self.quiet_since = Instant::now();
    }

    /// Returns the exceeded bound, if any.
    fn exceeded(&self, now: Duration, under_way: usize) -> Option<String> {
        if now - self.began > VIRTUAL_TIME_MAX {
            return Some("five years of virtual time have passed".into());
        }
        if self.pauses > PAUSES_MAX * under_way.max(1) {
            return Some(format!(
                "no event has ended within {} pauses: an event is retried without end",
                self.pauses
            ));
        }
        if self.events > self.events_max {
            return Some(format!(
                "{} events were handled: each event publishes another one",
                self.events
            ));
        }
        if under_way > 0 && self.quiet_since.elapsed() > REAL_TIME_MAX {
            return Some(format!(
                "no handler has ended for {REAL_TIME_MAX:?} of real time"
            ));
        }
        None
    }
}

impl TestBus {
    /// Waits until every event, and every event that follows from it, has ended, including
    /// scheduled events.
    ///
    /// # Panics
    ///
    /// Panics with the reason if the bus does not settle: see [`try_settle`](Self::try_settle).
    #[track_caller]
    pub fn settle(&mut self) -> impl Future<Output = ()> + Send {
        let caller = std::panic::Location::caller();
        async move {
            if let Err(unsettled) = self.try_settle().await {
                panic!("{unsettled} (settled at {caller})");
            }
        }
    }

    /// Does the same as [`settle`](Self::settle), but returns the reason, for tests of events that
    /// never end. Running events are kept and continue with the next call.
    ///
    /// # Errors
    ///
    /// Returns [`Unsettled`], with the running events and their errors, as soon as
    ///
    /// - a subscriber has been paused by an outage or its kill switch for ten minutes of virtual
    ///   time (or twenty probes of the kill switch, if that is longer);
    /// - none of the running events has ended within 5,000 pauses for each of them, or five years
    ///   of virtual time have passed in this call;
    /// - this call has handled 100,000 events and ten for each event that was pending when it
    ///   started;
    /// - handlers wait for an external resource, and none has ended for a minute of real time;
    /// - an outbox cannot be read.
    pub async fn try_settle(&mut self) -> Result<(), Unsettled> {
        let mut used = Used::new(&self.clock, self.topics.len());
        self.members.iter_mut().for_each(InMemory::be_patient);
        loop {
            let ended = self.collect().await?;
            let is_collected = ended == 0;
            used.ended(ended);
            let came = self.distribute();
            self.start();
            let is_idle = self.running.is_empty() && is_collected && !came;
            if is_idle && !self.pass_to_scheduled().await? {
                return Ok(());
            }
            if let Some(reason) = self.stuck(&used) {
                return Err(self.unsettled(reason));
            }
            // Events that can continue do so first. Then the clock advances: at once if all running
            // events pause, otherwise after a period without progress.
            let mut ended = tokio::time::timeout(Duration::ZERO, self.running.next()).await;
            if ended.is_err() && self.clock.sleepers() < self.running.len() {
                ended = tokio::time::timeout(STANDSTILL, self.running.next()).await;
            }
            match ended {
                Ok(Some((member, ended))) => {
                    self.members[member].finish(ended);
                    used.ended(1);
                }
                Ok(None) => {}
                // If no event pauses, the handlers wait for an external resource such as the
                // database or a timer.
                Err(_) => {
                    if self.pass().await? {
                        used.paused();
                    }
                }
            }
        }
    }

    fn start(&mut self) {
        for (at, member) in self.members.iter_mut().enumerate() {
            let works = std::iter::from_fn(|| member.start());
            self.running
                .extend(works.map(|work| Box::pin(async move { (at, work.await) }) as Pin<Box<_>>));
        }
    }

    fn stuck(&mut self, used: &Used) -> Option<String> {
        let now = self.clock.now();
        let paused = self
            .members
            .iter_mut()
            .find_map(|member| member.paused_too_long(now));
        paused.or_else(|| used.exceeded(now, self.running.len()))
    }

    fn unsettled(&self, reason: String) -> Unsettled {
        Unsettled {
            reason,
            under_way: self
                .members
                .iter()
                .flat_map(|member| member.describe())
                .collect(),
        }
    }

    fn unreadable(&self, error: &sqlx::Error) -> Unsettled {
        self.unsettled(format!("an outbox cannot be read: {error}"))
    }

    /// Advances the clock to the end of the next pause or to the next scheduled event. Returns
    /// `false` if there is neither.
    async fn pass(&mut self) -> Result<bool, Unsettled> {
        if self.clock.sleepers() == 0 {
            return Ok(false);
        }
        self.look_for_scheduled().await?;
        match self.outboxes.next_due() {
            Some(due) if self.clock.next_due().is_none_or(|next| due < next) => {
                self.pass_to(due).await.map(|()| true)
            }
            _ => Ok(self.clock.advance()),
        }
    }

    /// Advances the clock to the next scheduled event. Returns `false` if there is none.
    async fn pass_to_scheduled(&mut self) -> Result<bool, Unsettled> {
        self.look_for_scheduled().await?;
        match self.outboxes.next_due() {
            Some(due) => self.pass_to(due).await.map(|()| true),
            None => Ok(false),
        }
    }

    async fn pass_to(&mut self, due: Duration) -> Result<(), Unsettled> {
        self.clock.pass_to(due);
        let now = self.clock.now();
        let mut ended = Vec::new();
        let published = beside(
            &mut self.running,
            &mut ended,
            self.outboxes.publish_due(now),
        )
        .await;
        self.finish(ended);
        published.map_err(|error| self.unreadable(&error))
    }

    async fn look_for_scheduled(&mut self) -> Result<(), Unsettled> {
        let mut ended = Vec::new();
        let looked = beside(
            &mut self.running,
            &mut ended,
            self.outboxes.look_for_scheduled(self.clock.now()),
        )
        .await;
        self.finish(ended);
        looked.map_err(|error| self.unreadable(&error))
    }

    /// Delivers the events that handlers have published, in memory or in an outbox, and the
    /// retries, to the subscribers. Returns the number of events that have ended meanwhile.
    async fn collect(&mut self) -> Result<usize, Unsettled> {
        let mut ended = Vec::new();
        let published = beside(&mut self.running, &mut ended, self.outboxes.published()).await;
        let count = ended.len();
        self.finish(ended);
        let published = published.map_err(|error| self.unreadable(&error))?;
        self.take(published);
        Ok(count)
    }

    fn finish(&mut self, ended: Vec<(usize, Ended)>) {
        ended
            .into_iter()
            .for_each(|(member, ended)| self.members[member].finish(ended));
    }
}

/// Waits for `work` while the running events continue, since they may hold all connections of the
/// pool that `work` needs.
async fn beside<T>(
    running: &mut Running,
    ended: &mut Vec<(usize, Ended)>,
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            Some(end) = running.next() => ended.push(end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_is_a_reason_and_an_end_starts_the_pauses_anew() {
        let used = || Used::new(&VirtualClock::default(), 0);
        let exceeded = |used: &Used| used.exceeded(Duration::ZERO, 2);
        assert!(exceeded(&used()).is_none());
        assert!(
            used()
                .exceeded(VIRTUAL_TIME_MAX + Duration::from_secs(1), 0)
                .is_some_and(|reason| reason.contains("five years"))
        );
        let pauses = Used {
            pauses: 2 * PAUSES_MAX + 1,
            ..used()
        };
        assert!(exceeded(&pauses).is_some_and(|reason| reason.contains("without end")));
        let mut pauses = pauses;
        pauses.ended(1);
        assert!(exceeded(&pauses).is_none());
        let events = Used {
            events: EVENTS_MAX + 1,
            ..used()
        };
        assert!(exceeded(&events).is_some_and(|reason| reason.contains("publishes another")));
        assert!(
            exceeded(&Used {
                events_max: EVENTS_MAX + 10,
                ..events
            })
            .is_none(),
            "pending events do not count against the limit"
        );
        let Some(long_ago) = Instant::now().checked_sub(REAL_TIME_MAX + Duration::from_secs(1))
        else {
            return;
        };
        let quiet = Used {
            quiet_since: long_ago,
            ..used()
        };
        assert!(exceeded(&quiet).is_some_and(|reason| reason.contains("real time")));
        assert!(
            quiet.exceeded(Duration::ZERO, 0).is_none(),
            "no event is running"
        );
    }
}
