//! Lifecycle of an event from its first attempt until it is handled, parked, a dead letter, or left
//! to the next owner of its partition.
//!
//! ```text
//!              ┌── pause ◀─ retry, snooze, unavailable
//!              ▼               │
//!  event ─▶ attempt ───────────┼─ handled, duplicate, skip ─▶ finished
//!                              └─ attempts used up, dead letter ─▶ kill switch ─┬─▶ table `detour`
//!                                                                               ├─▶ retry topic
//!                                                                               └─▶ dead letter
//! ```

pub(crate) mod escalation;
pub(crate) mod failure_log;
pub(crate) mod gate;
pub(crate) mod outage;
pub(crate) mod permit;
pub(crate) mod probe;

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tracing::Span;

use super::{
    Delivery, Escalation, Order, SubscriberState,
    clock::Clock,
    companion::Companions,
    deployment::unknown_types::UnknownTypes,
    failure::dead_letter::{DUE, DeadLetters, Letterbox},
    handler::{
        Called, HandlerError, Verdict,
        router::{Core, Handled, HandlerService, Work},
    },
    options::{
        Options,
        kill_switch::Tally,
        retry::{Next, Retry},
    },
    telemetry::{
        log_limit::LogLimit,
        statistics::{Count, Counters, Statistics},
    },
};
use crate::{event::panic_text, kafka::Message, postgres::session_fault};
use escalation::{Dead, REFUSED_PAUSE, retry_delay};
use failure_log::FailureLog;
use gate::Gate;
use outage::Outage;
use permit::Turn;

/// Pause of an event that waits in place for another version of the code.
const WAIT_PAUSE: Duration = Duration::from_secs(1);

/// Runs attempts according to the options of a subscriber. There is one runner per subscriber.
pub(crate) struct Runner {
    pub(crate) name: String,
    pub(crate) core: Arc<Core>,
    pub(crate) service: HandlerService,
    pub(crate) options: Options,
    pub(crate) escalation: Escalation,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) letterbox: Box<dyn Letterbox>,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) gate: Gate,
    pub(crate) statistics: Statistics,
    pub(crate) tally: Mutex<Tally>,
    /// True if the tally contains a failure. Successes are counted only then.
    pub(crate) tallying: AtomicBool,
    /// Held by the event that probes while the kill switch has tripped.
    pub(crate) probe: tokio::sync::Mutex<()>,
    /// Number of events that probe or wait to probe.
    pub(crate) probing: AtomicUsize,
    pub(crate) tripped: AtomicBool,
    /// Limits log lines about dead letters of unreadable records.
    pub(crate) unreadable: LogLimit,
    pub(crate) clock: Clock,
    pub(crate) failures: FailureLog,
    pub(crate) unknown_types: UnknownTypes,
    /// Limits log lines about events that wait for another version of the code.
    pub(crate) waiting: LogLimit,
    pub(crate) companions: Companions,
}

/// Outcome of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The event is done and is not needed again.
    Finished,
    /// The event must be parked with the later events of its aggregate, after this number of
    /// attempts. The last attempt failed with this error.
    Park { attempts: u32, error: String },
    /// Another version of the code can handle the event. Until then it must be parked with the
    /// later events of its aggregate.
    Waits { error: String },
    /// The broker rejects the dead letter of the event. The event must be parked until the settings
    /// of the dead letter topic change.
    Refused { attempts: u32, error: String },
    /// The partition is revoked or the subscriber stops. The next owner of the partition handles
    /// the event.
    Abandoned,
}

/// Outcome of an attempt at a parked event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parked {
    /// The event is handled or a dead letter. The next event of its aggregate follows.
    Done,
    /// The event waits for another version of the code.
    Waits { error: String },
    /// The event is tried again after this time.
    Again {
        after: Duration,
        attempts: u32,
        error: String,
    },
    /// The partition is revoked or the subscriber stops.
    Abandoned,
}

impl Settled {
    /// Converts the outcome for an event that is already parked and had `before` attempts from
    /// there.
    pub(crate) fn parked(self, before: u32) -> Parked {
        match self {
            Self::Finished | Self::Park { .. } => Parked::Done,
            Self::Waits { error } => Parked::Waits { error },
            Self::Refused { error, .. } => Parked::Again {
                after: REFUSED_PAUSE,
                attempts: before,
                error,
            },
            Self::Abandoned => Parked::Abandoned,
        }
    }
}

/// A failed batch. Its events must be handled one by one. `attempts` is the number of failed
/// attempts that count against them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchFailed {
    pub(crate) attempts: u32,
}

impl Runner {
    /// Handles several messages of one type in one attempt. If it fails, they must be handled one
    /// by one.
    pub(crate) async fn settle_together(
        &self,
        messages: &[Arc<Message>],
    ) -> Result<(), BatchFailed> {
        match self.attempt(Delivery::many(messages.to_vec(), 1)).await {
            Ok(handled) => {
                self.handled(handled, messages[0].kind(), messages.len());
                Ok(())
            }
            Err(error) => {
                let counts = matches!(error.verdict(), Verdict::Retry | Verdict::DeadLetter);
                if counts {
                    self.report_batch(&messages[0], &error);
                }
                Err(BatchFailed {
                    attempts: u32::from(counts),
                })
            }
        }
    }

    /// Handles one message until it has an outcome, with these retry rules. Its first attempt may
    /// already have begun.
    pub(crate) async fn settle(
        &self,
        message: &Arc<Message>,
        turn: &mut Turn<'_>,
        retry: &Retry,
        mut begun: Option<Attempt>,
    ) -> Settled {
        if begun.is_none()
            && let Some(time) = self.due_in(message)
            && !turn.pause(time).await
        {
            return Settled::Abandoned;
        }
        let (mut failed, mut outage) = (0, Outage::none(self));
        loop {
            let attempt = begun.take().unwrap_or_else(|| {
                self.begin(
                    Delivery::one(message.clone(), failed + 1),
                    Instant::now(),
                    &mut None,
                )
            });
            let error = match self.end_of(attempt, message).await {
                Ok(handled) => {
                    self.handled(handled, message.kind(), 1);
                    return Settled::Finished;
                }
                Err(error) => error,
            };
            if error.verdict() != Verdict::Unavailable {
                outage.is_over();
            }
            if error.is_conflicting() {
                return self.end_conflicting(message, &error, failed, turn).await;
            }
            if error.waits_for_code() {
                self.report_waiting(message, &error);
                if self.options.order == Order::Aggregate {
                    return Settled::Waits {
                        error: error.chain(),
                    };
                }
                // Only order per aggregate allows parking, so the event waits in place.
                if !turn.pause(WAIT_PAUSE).await {
                    return Settled::Abandoned;
                }
                continue;
            }
            let pause = match error.verdict() {
                Verdict::Skip => {
                    self.skipped(message, &error);
                    return Settled::Finished;
                }
                Verdict::Snooze(time) => time,
                Verdict::Unavailable => outage.goes_on(&error),
                Verdict::Retry | Verdict::DeadLetter => {
                    failed += 1;
                    self.statistics
                        .add(Count::FailedAttempts, message.kind(), 1);
                    self.report_attempt(message, failed, &error);
                    let next = if error.verdict() == Verdict::DeadLetter {
                        Next::GiveUp
                    } else {
                        retry.after(failed, chance())
                    };
                    match next {
                        Next::After(pause) => pause,
                        // Malformed input from one producer must not pause the events of others.
                        Next::GiveUp if !error.is_undecodable() && self.trips() => {
                            match self.probe(message, turn).await {
                                Some(end) => return end,
                                None => continue,
                            }
                        }
                        Next::GiveUp => return self.end(message, &error, failed, turn).await,
                    }
                }
            };
            if !turn.pause(pause).await {
                return Settled::Abandoned;
            }
        }
    }

    /// Makes one attempt at a parked message that has failed `before` times since it was parked.
    /// Outages are waited out. If an earlier deployment parked the message and this one parks
    /// nothing, the message is handled like a new one, before the later ones of its aggregate.
    pub(crate) async fn settle_parked(
        &self,
        message: &Arc<Message>,
        turn: &mut Turn<'_>,
        before: u32,
    ) -> Parked {
        let Escalation::Park(retry) = &self.escalation else {
            return self
                .settle(message, turn, &self.options.retry, None)
                .await
                .parked(before);
        };
        let mut outage = Outage::none(self);
        loop {
            let error = match self.attempt(Delivery::one(message.clone(), 1)).await {
                Ok(handled) => {
                    self.handled(handled, message.kind(), 1);
                    return Parked::Done;
                }
                Err(error) => error,
            };
            if error.is_conflicting() {
                return self
                    .end_conflicting(message, &error, 0, turn)
                    .await
                    .parked(before);
            }
            if error.waits_for_code() {
                self.report_waiting(message, &error);
                return Parked::Waits {
                    error: error.chain(),
                };
            }
            let pause = match error.verdict() {
                Verdict::Skip => {
                    self.skipped(message, &error);
                    return Parked::Done;
                }
                Verdict::Snooze(time) => {
                    return Parked::Again {
                        after: time,
                        attempts: before,
                        error: error.chain(),
                    };
                }
                Verdict::Unavailable => outage.goes_on(&error),
                Verdict::Retry | Verdict::DeadLetter => {
                    self.statistics
                        .add(Count::FailedAttempts, message.kind(), 1);
                    self.report_attempt(message, 1, &error);
                    let is_dead = error.verdict() == Verdict::DeadLetter;
                    match retry.after(before + 1, chance()) {
                        Next::After(after) if !is_dead => {
                            return Parked::Again {
                                after,
                                attempts: before + 1,
                                error: error.chain(),
                            };
                        }
                        _ => {}
                    }
                    return self
                        .bury_at_last(&Dead::event(message, 1), &error, turn)
                        .await
                        .parked(before);
                }
            };
            if !turn.pause(pause).await {
                return Parked::Abandoned;
            }
        }
    }

    /// Makes one attempt.
    pub(crate) async fn attempt(&self, delivery: Delivery) -> Result<Handled, HandlerError> {
        let first = delivery.first().clone();
        self.end_of(self.begin(delivery, Instant::now(), &mut None), &first)
            .await
    }

    /// Begins an attempt in its own span.
    fn begin(&self, delivery: Delivery, began: Instant, spare: &mut Option<Called>) -> Attempt {
        let span = self.span(&delivery);
        // Handlers and layers are cloned for each attempt, and a `Clone` implementation may panic.
        let work =
            std::panic::catch_unwind(AssertUnwindSafe(|| self.service.begin(delivery, spare)));
        let state = work.map_or_else(
            |panic| AttemptState::Ended(Some(Err(panicked(&*panic)))),
            AttemptState::Runs,
        );
        Attempt { span, began, state }
    }

    /// Waits for the result of an attempt at an event.
    async fn end_of(
        &self,
        mut attempt: Attempt,
        message: &Message,
    ) -> Result<Handled, HandlerError> {
        let result = (&mut attempt).await;
        self.statistics
            .of(message.kind())
            .attempted(attempt.began.elapsed());
        let Err(error) = result else { return result };
        let waits_for_code = self.options.wait_for_newer_code && error.asks_for_newer_code();
        let met_silence =
            error.ran_out_of_time() && self.was_database_silent_since(attempt.began).await;
        if let Some(simulation) = self.core.simulation() {
            simulation.failed(message, &error);
        }
        Err(if waits_for_code || met_silence {
            error.waited_out()
        } else {
            error
        })
    }

    async fn was_database_silent_since(&self, began: Instant) -> bool {
        let Some(inbox) = &self.core.inbox else {
            return false;
        };
        inbox.pulse.was_silent_since(began.into()).await
    }

    /// Handles a message immediately if its handlers do not wait and do not fail. Nothing else is
    /// needed for it then. Otherwise returns the attempt that has begun, and
    /// [`settle`](Self::settle) continues it. `now` is set to the time after polling.
    pub(crate) fn handle_now(
        &self,
        message: &Arc<Message>,
        now: &mut Instant,
        spare: &mut Option<Called>,
    ) -> Result<(), Attempt> {
        let mut attempt = self.begin(Delivery::one(message.clone(), 1), *now, spare);
        let polled = Pin::new(&mut attempt).poll(&mut Context::from_waker(Waker::noop()));
        *now = Instant::now();
        match polled {
            Poll::Ready(Ok(handled)) => {
                let counters = self.statistics.of(message.kind());
                counters.attempted(*now - attempt.began);
                self.handled_by(handled, counters, 1);
                if let AttemptState::Runs(Work::Handler(called)) = attempt.state {
                    *spare = Some(called);
                }
                Ok(())
            }
            Poll::Ready(Err(error)) => Err(Attempt {
                state: AttemptState::Ended(Some(Err(error))),
                ..attempt
            }),
            // The waker does nothing. The task that continues the attempt polls it at once.
            Poll::Pending => Err(attempt),
        }
    }

    /// Returns the time until an event of a retry topic is due. It is limited by the delay in the
    /// topic's name, because anyone who can write to the topic can set arbitrary headers.
    pub(crate) fn due_in(&self, message: &Message) -> Option<Duration> {
        let longest = retry_delay(&message.as_it_came().topic, &self.name)?;
        let due = message.header(DUE)?.parse::<i64>().ok()?;
        let wait = due.saturating_sub(self.clock.utc().timestamp_millis());
        u64::try_from(wait)
            .ok()
            .filter(|wait| *wait > 0)
            .map(|wait| Duration::from_millis(wait).min(longest))
    }

    /// Returns the span for everything that is logged during an attempt.
    fn span(&self, delivery: &Delivery) -> Span {
        let event = delivery.first();
        let record = event.as_it_came();
        tracing::info_span!(
            "handle",
            otel.kind = "consumer",
            subscriber = self.name,
            event.id = &*event.id(),
            event.r#type = event.event_type(),
            aggregate = &*event.aggregate_id(),
            attempt = delivery.attempt(),
            events = delivery.len(),
            topic = &*record.topic,
            partition = record.partition,
            offset = record.offset,
            traceparent = event.header("traceparent"),
            otel.status_code = tracing::field::Empty,
            error = tracing::field::Empty,
        )
    }

    pub(crate) fn handled(&self, handled: Handled, event_type: &str, events: usize) {
        self.handled_by(handled, self.statistics.of(event_type), events);
    }

    fn handled_by(&self, handled: Handled, counters: &Counters, events: usize) {
        counters.add(
            if handled == Handled::Done {
                Count::Handled
            } else {
                Count::Duplicates
            },
            events,
        );
        if !self.gate.is_open() {
            self.reopen();
        }
        if self.tallying.load(Ordering::Relaxed) {
            let now = self.clock.instant();
            self.tally
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .handled(now);
        }
    }

    fn report_waiting(&self, message: &Message, error: &HandlerError) {
        if let Some(suppressed) = self.waiting.admit(Instant::now()) {
            tracing::warn!(
                subscriber = self.name,
                event.id = &*message.id(),
                event.r#type = message.event_type(),
                topic = &*message.as_it_came().topic,
                error = error.chain(),
                suppressed,
                "an event waits for another version of the code; similar messages are logged \
                 every 10 s at most"
            );
        }
    }

    pub(crate) fn skipped(&self, message: &Message, error: &HandlerError) {
        tracing::debug!(subscriber = self.name, %error, "an event is skipped");
        self.statistics.add(Count::Skipped, message.kind(), 1);
    }

    /// Closes the idle sessions of the inbox if `error` shows that a session cannot be used any
    /// more.
    pub(crate) fn close_sessions_after(&self, error: &sqlx::Error) {
        if let Some(inbox) = &self.core.inbox {
            session_fault::close_after(error, &inbox.pool);
        }
    }

    pub(crate) fn shut(&self, state: SubscriberState, reason: &str) {
        self.gate.shut(&self.name, reason);
        self.statistics.paused(state, reason);
    }

    pub(crate) fn reopen(&self) {
        // The end of an outage does not end a pause by the kill switch.
        if self.tripped.load(Ordering::Acquire) {
            return self
                .statistics
                .set_state(SubscriberState::PausedByKillSwitch);
        }
        self.gate.reopen(&self.name);
        self.statistics.set_state(SubscriberState::Running);
    }
}

/// An attempt that has begun. A panic counts as a failed attempt.
pub(crate) struct Attempt {
    span: Span,
    began: Instant,
    state: AttemptState,
}

enum AttemptState {
    Runs(Work),
    /// The attempt has ended, and its result has not been taken yet.
    Ended(Option<Result<Handled, HandlerError>>),
}

impl Future for Attempt {
    type Output = Result<Handled, HandlerError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let _entered = this.span.enter();
        let polled = match &mut this.state {
            AttemptState::Runs(work) => {
                std::panic::catch_unwind(AssertUnwindSafe(|| Pin::new(work).poll(cx)))
                    .unwrap_or_else(|panic| Poll::Ready(Err(panicked(&*panic))))
            }
            AttemptState::Ended(end) => Poll::Ready(end.take().expect("polled once")),
        };
        if let Poll::Ready(Err(error)) = &polled {
            mark_failed(&this.span, error);
        }
        polled
    }
}

/// Marks the span of a failed attempt. An event that is skipped or postponed is not a failure.
fn mark_failed(span: &Span, error: &HandlerError) {
    if matches!(
        error.verdict(),
        Verdict::Retry | Verdict::DeadLetter | Verdict::Unavailable
    ) && !span.is_disabled()
    {
        span.record("otel.status_code", "ERROR");
        span.record("error", error.chain());
    }
}

/// Returns the error of an attempt that panicked.
fn panicked(panic: &(dyn Any + Send)) -> HandlerError {
    HandlerError::retry(format!("the handler panicked: {}", panic_text(panic)))
}

/// Returns a random number from 0 to 1, used as the jitter of pauses.
pub(crate) fn chance() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let bits = RandomState::new().hash_one(0u8) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_between_zero_and_one_and_differs() {
        let some: Vec<f64> = (0..10).map(|_| chance()).collect();
        assert!(some.iter().all(|chance| (0.0..1.0).contains(chance)));
        assert!(some.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
