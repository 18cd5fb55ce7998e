//! An event from its first attempt to its end: handled, set aside, dead, or left to the next owner of its partition.
//!
//! ```text
//!              ┌── pause ◀─ retry, snooze, unavailable
//!              ▼               │
//!  event ─▶ attempt ───────────┴─ handled, duplicate, skip ─▶ finished
//!                              └─ attempts used up ─▶ kill switch ─▶ park ─▶ detour
//!                                 dead letter      ─────────────────┴──────▶ retry topic, dead letter ─▶ finished
//! ```

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::dead_letters::{DUE, DeadLetters, Letterbox, Obituary, TIER, letter, original_topic};
use super::gate::Gate;
use super::handler::{HandlerError, Verdict};
use super::kill_switch::Tally;
use super::options::Options;
use super::retry::{Next, Retry};
use super::router::{Core, Handled, HandlerService};
use super::statistics::{Count, Statistics};
use super::{Delivery, Escalation};
use crate::kafka::{Incoming, LetterError, Message};

/// Pauses while something that every event needs is down: short enough to be felt as quick.
const OUTAGE_PAUSES: std::ops::Range<Duration> = Duration::from_millis(100)..Duration::from_secs(5);

/// Runs attempts by the subscriber's rules. One a subscriber.
pub(super) struct Runner {
    pub(super) name: String,
    pub(super) core: Arc<Core>,
    pub(super) service: HandlerService,
    pub(super) options: Options,
    pub(super) escalation: Escalation,
    pub(super) dead_letters: DeadLetters,
    pub(super) letterbox: Box<dyn Letterbox>,
    pub(super) permits: Arc<Semaphore>,
    pub(super) gate: Gate,
    pub(super) statistics: Statistics,
    pub(super) tally: Mutex<Tally>,
    /// Whether the tally has a failure, so that what succeeds need not be counted otherwise.
    pub(super) tallying: AtomicBool,
    /// Who probes while the kill switch has tripped.
    pub(super) probe: tokio::sync::Mutex<()>,
    pub(super) tripped: AtomicBool,
    pub(super) clock: Clock,
}

/// How an event ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// It need not be seen again.
    Finished,
    /// It is to be set aside, with the later ones of its aggregate.
    Park,
    /// The subscriber gives the partition up: the next owner handles it.
    Abandoned,
}

/// How a parked event ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parked {
    /// It is handled or dead: the next of its aggregate follows.
    Done,
    /// It is tried again after this long.
    Again { after: Duration, attempts: u32, error: String },
    /// The partition is given up.
    Abandoned,
}

/// The permission to run, given back during pauses.
pub(super) struct Turn<'r> {
    permits: &'r Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
    drain: &'r CancellationToken,
    clock: Clock,
}

impl<'r> Turn<'r> {
    pub(super) fn new(runner: &'r Runner, permit: OwnedSemaphorePermit, drain: &'r CancellationToken) -> Self {
        Self { permits: &runner.permits, permit: Some(permit), drain, clock: runner.clock.clone() }
    }

    /// Lets others run for this long; false if the partition is given up meanwhile.
    pub(super) async fn pause(&mut self, time: Duration) -> bool {
        self.permit = None;
        tokio::select! {
            () = self.drain.cancelled() => return false,
            () = self.clock.sleep(time) => {}
        }
        tokio::select! {
            () = self.drain.cancelled() => false,
            permit = self.permits.clone().acquire_owned() => {
                self.permit = permit.ok();
                self.permit.is_some()
            }
        }
    }
}

impl Runner {
    /// Handles several messages of one type by one attempt; false if they are to be handled one by one.
    pub(super) async fn settle_together(&self, messages: &[Arc<Message>]) -> bool {
        match self.attempt(Delivery::many(messages.to_vec(), 1)).await {
            Ok(handled) => {
                self.handled(handled, messages.len());
                true
            }
            Err(error) => {
                tracing::debug!(subscriber = self.name, error = error.chain(), "a batch failed; its events are handled one by one");
                false
            }
        }
    }

    /// Handles one message until it has ended, by these retry rules.
    pub(super) async fn settle(&self, message: &Arc<Message>, turn: &mut Turn<'_>, retry: &Retry) -> Settled {
        if let Some(time) = due_in(message)
            && !turn.pause(time).await
        {
            return Settled::Abandoned;
        }
        let (mut failed, mut outages) = (0, 0);
        loop {
            let error = match self.attempt(Delivery::one(message.clone(), failed + 1)).await {
                Ok(handled) => {
                    self.handled(handled, 1);
                    return Settled::Finished;
                }
                Err(error) => error,
            };
            if error.verdict() == Verdict::Unavailable {
                outages += 1;
                self.shut(&error.chain());
            } else if outages > 0 {
                outages = 0;
                self.reopen();
            }
            let pause = match error.verdict() {
                Verdict::Skip => {
                    tracing::debug!(subscriber = self.name, %error, "an event is skipped");
                    self.statistics.add(Count::Skipped, 1);
                    return Settled::Finished;
                }
                Verdict::Snooze(time) => time,
                Verdict::Unavailable => Retry::exponential(u32::MAX, OUTAGE_PAUSES).pause(outages, chance()),
                Verdict::Retry | Verdict::DeadLetter => {
                    failed += 1;
                    self.statistics.add(Count::FailedAttempts, 1);
                    let next = if error.verdict() == Verdict::DeadLetter { Next::GiveUp } else { retry.after(failed, chance()) };
                    match next {
                        Next::After(pause) => {
                            tracing::debug!(subscriber = self.name, failed, error = error.chain(), "an attempt failed");
                            pause
                        }
                        Next::GiveUp if self.trips() => match self.probe(message, turn).await {
                            Some(end) => return end,
                            None => continue,
                        },
                        Next::GiveUp => return self.end(message, &error, failed, turn).await,
                    }
                }
            };
            if !turn.pause(pause).await {
                return Settled::Abandoned;
            }
        }
    }

    /// Handles one message that is parked and failed this often before.
    pub(super) async fn settle_parked(&self, message: &Arc<Message>, turn: &mut Turn<'_>, before: u32) -> Parked {
        let Escalation::Park(retry) = &self.escalation else { return Parked::Done };
        let mut outages = 0;
        loop {
            let error = match self.attempt(Delivery::one(message.clone(), self.options.retry.attempts() + before + 1)).await {
                Ok(handled) => {
                    self.handled(handled, 1);
                    return Parked::Done;
                }
                Err(error) => error,
            };
            let pause = match error.verdict() {
                Verdict::Skip => return Parked::Done,
                Verdict::Snooze(time) => return Parked::Again { after: time, attempts: before, error: error.chain() },
                Verdict::Unavailable => {
                    outages += 1;
                    self.shut(&error.chain());
                    Retry::exponential(u32::MAX, OUTAGE_PAUSES).pause(outages, chance())
                }
                Verdict::Retry | Verdict::DeadLetter => {
                    self.statistics.add(Count::FailedAttempts, 1);
                    let is_dead = error.verdict() == Verdict::DeadLetter;
                    match retry.after(before + 1, chance()) {
                        Next::After(after) if !is_dead => return Parked::Again { after, attempts: before + 1, error: error.chain() },
                        _ => {}
                    }
                    let attempts = self.options.retry.attempts() + before + 1;
                    return match self.bury_at_last(message.as_it_came(), original_topic(message), &error, "handler", attempts, turn).await {
                        Settled::Abandoned => Parked::Abandoned,
                        _ => Parked::Done,
                    };
                }
            };
            if !turn.pause(pause).await {
                return Parked::Abandoned;
            }
        }
    }

    /// Sends a record that is no event to the dead letters, however long that takes.
    pub(super) async fn settle_malformed(&self, record: &Incoming, reason: &str, turn: &mut Turn<'_>) -> Settled {
        let error = HandlerError::dead_letter(reason);
        self.bury_at_last(record, &record.topic, &error, "malformed", 0, turn).await
    }

    /// One attempt. A panic is a failed one.
    async fn attempt(&self, delivery: Delivery) -> Result<Handled, HandlerError> {
        AssertUnwindSafe(self.service.handle(delivery)).catch_unwind().await.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
            Err(HandlerError::retry(format!("the handler panicked: {}", text.as_deref().unwrap_or("without a text"))))
        })
    }

    fn handled(&self, handled: Handled, events: usize) {
        self.statistics.add(if handled == Handled::Done { Count::Handled } else { Count::Duplicates }, events);
        if !self.gate.is_open() && !self.tripped.load(Ordering::Acquire) {
            self.reopen();
        }
        if self.tallying.load(Ordering::Relaxed) {
            let now = tokio::time::Instant::now().into_std();
            self.tally.lock().unwrap_or_else(PoisonError::into_inner).handled(now);
        }
    }

    /// Whether an event that is to be given up is one too many.
    fn trips(&self) -> bool {
        let Some(switch) = &self.options.kill_switch else { return false };
        self.tallying.store(true, Ordering::Relaxed);
        let now = tokio::time::Instant::now().into_std();
        let trips = self.tally.lock().unwrap_or_else(PoisonError::into_inner).given_up(now, switch);
        if trips && !self.tripped.swap(true, Ordering::AcqRel) {
            self.shut("too many events fail: the kill switch has tripped, and one at a time is tried");
        }
        trips || self.tripped.load(Ordering::Acquire)
    }

    /// Tries one event at a time until one is handled. `None` when the switch is closed again and this event shall be tried as usual.
    async fn probe(&self, message: &Arc<Message>, turn: &mut Turn<'_>) -> Option<Settled> {
        let pause = self.options.kill_switch.as_ref().map_or(Duration::ZERO, |switch| switch.pause);
        loop {
            turn.permit = None;
            let _probing = tokio::select! {
                () = turn.drain.cancelled() => return Some(Settled::Abandoned),
                probing = self.probe.lock() => probing,
            };
            if !self.tripped.load(Ordering::Acquire) {
                return (!turn.pause(Duration::ZERO).await).then_some(Settled::Abandoned);
            }
            if !turn.pause(pause).await {
                return Some(Settled::Abandoned);
            }
            if let Ok(handled) = self.attempt(Delivery::one(message.clone(), 1)).await {
                self.tally.lock().unwrap_or_else(PoisonError::into_inner).reset();
                self.tallying.store(false, Ordering::Relaxed);
                self.tripped.store(false, Ordering::Release);
                self.reopen();
                self.handled(handled, 1);
                return Some(Settled::Finished);
            }
        }
    }

    /// Sends an event that used up its attempts where the subscriber's rules say, however long that takes: until then none is lost, and none is handled.
    async fn end(&self, message: &Message, error: &HandlerError, failed: u32, turn: &mut Turn<'_>) -> Settled {
        let is_dead = error.verdict() == Verdict::DeadLetter;
        match &self.escalation {
            Escalation::Park(_) if !is_dead && message.as_it_came().key().is_some() => return Settled::Park,
            Escalation::RetryTopics(delays) if !is_dead => {
                let tier: usize = message.header(TIER).and_then(|tier| tier.parse().ok()).unwrap_or(0);
                if let Some(delay) = delays.get(tier) {
                    let mut outage = 0;
                    while let Err(unsent) = self.send_to_retry(message, error, failed, tier, *delay).await {
                        if !self.outlast(&unsent, &mut outage, turn).await {
                            return Settled::Abandoned;
                        }
                    }
                    self.outlasted(outage);
                    return Settled::Finished;
                }
            }
            _ => {}
        }
        self.bury_at_last(message.as_it_came(), original_topic(message), error, "handler", failed, turn).await
    }

    async fn bury_at_last(
        &self,
        record: &Incoming,
        origin: &str,
        error: &HandlerError,
        kind: &str,
        attempts: u32,
        turn: &mut Turn<'_>,
    ) -> Settled {
        let mut outage = 0;
        while let Err(unsent) = self.bury(record, origin, error, kind, attempts).await {
            if !self.outlast(&unsent, &mut outage, turn).await {
                return Settled::Abandoned;
            }
        }
        self.outlasted(outage);
        Settled::Finished
    }

    /// Waits before something is tried again that is needed by all: nothing else starts meanwhile. False if the partition is given up.
    async fn outlast(&self, error: &HandlerError, outage: &mut u32, turn: &mut Turn<'_>) -> bool {
        *outage += 1;
        self.shut(&error.chain());
        turn.pause(Retry::exponential(u32::MAX, OUTAGE_PAUSES).pause(*outage, chance())).await
    }

    fn outlasted(&self, outage: u32) {
        if outage > 0 {
            self.reopen();
        }
    }

    async fn send_to_retry(
        &self,
        message: &Message,
        error: &HandlerError,
        failed: u32,
        tier: usize,
        delay: Duration,
    ) -> Result<(), HandlerError> {
        let origin = original_topic(message);
        let why = Obituary { group: &self.name, error, kind: "handler", attempts: failed };
        let mut letter = letter(message.as_it_came(), retry_topic(origin, &self.name, delay), &why);
        let due = chrono::Utc::now() + delay;
        letter.headers.push((TIER.into(), (tier + 1).to_string().into_bytes()));
        letter.headers.push((DUE.into(), due.timestamp_millis().to_string().into_bytes()));
        self.letterbox.send(&letter, origin).await.map_err(HandlerError::unavailable)?;
        self.statistics.add(Count::Retried, 1);
        Ok(())
    }

    /// Sends a record to the dead letters.
    ///
    /// # Errors
    /// When it does not arrive there; it is not finished then.
    pub(super) async fn bury(
        &self,
        record: &Incoming,
        origin: &str,
        error: &HandlerError,
        kind: &str,
        attempts: u32,
    ) -> Result<(), HandlerError> {
        let (topic, partition, offset, reason) = (&*record.topic, record.partition, record.offset, error.chain());
        let Some(place) = self.dead_letters.topic_for(origin, &self.name) else {
            tracing::error!(subscriber = self.name, topic, partition, offset, reason, "an event cannot be handled and is discarded");
            self.statistics.add(Count::Discarded, 1);
            return Ok(());
        };
        let why = Obituary { group: &self.name, error, kind, attempts };
        match self.letterbox.send(&letter(record, place.clone(), &why), origin).await {
            Ok(()) => {}
            Err(error @ LetterError::Refused { .. }) => {
                // Too large with its new headers, say: the record is still where it was, and this line says so.
                tracing::error!(subscriber = self.name, topic, partition, offset, reason, %error, "a dead letter is refused and discarded");
                self.statistics.add(Count::Discarded, 1);
                return Ok(());
            }
            Err(error) => return Err(HandlerError::unavailable(error)),
        }
        tracing::error!(subscriber = self.name, topic, partition, offset, reason, dead_letters = place, "an event is dead");
        self.statistics.add(Count::DeadLettered, 1);
        Ok(())
    }

    fn shut(&self, reason: &str) {
        self.gate.shut(&self.name, reason);
        self.statistics.set_paused(true);
    }

    fn reopen(&self) {
        self.gate.reopen(&self.name);
        self.statistics.set_paused(false);
    }
}

/// The topic in which an event waits for its next attempt.
pub(super) fn retry_topic(topic: &str, group: &str, delay: Duration) -> String {
    let seconds = delay.as_secs();
    let delay = match delay.subsec_millis() {
        0 if seconds > 0 && seconds.is_multiple_of(3_600) => format!("{}h", seconds / 3_600),
        0 if seconds > 0 && seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        0 => format!("{seconds}s"),
        _ => format!("{}ms", delay.as_millis()),
    };
    format!("{topic}.{group}.retry.{delay}")
}

/// How long an event of a retry topic has to wait yet.
fn due_in(message: &Message) -> Option<Duration> {
    let due: i64 = message.header(DUE)?.parse().ok()?;
    let wait = due - chrono::Utc::now().timestamp_millis();
    u64::try_from(wait).ok().filter(|wait| *wait > 0).map(Duration::from_millis)
}

/// A number from 0 to 1, different for each caller: the jitter of pauses.
fn chance() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let bits = RandomState::new().hash_one(0u8) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_topics_are_named_by_their_delay() {
        for (delay, name) in [(90, "90s"), (60, "1m"), (7_200, "2h"), (0, "0s")] {
            assert_eq!(retry_topic("order", "stock", Duration::from_secs(delay)), format!("order.stock.retry.{name}"));
        }
        assert_eq!(retry_topic("a", "b", Duration::from_millis(1_500)), "a.b.retry.1500ms");
    }

    #[test]
    fn chance_is_between_zero_and_one_and_differs() {
        let some: Vec<f64> = (0..10).map(|_| chance()).collect();
        assert!(some.iter().all(|chance| (0.0..1.0).contains(chance)));
        assert!(some.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
