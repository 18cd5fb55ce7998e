//! Lifecycle of an event from its first attempt until it is handled, parked, a dead letter, or left
//! to the next owner of its partition.
//!
//! ```text
//!              ┌── pause ◀─ retry, snooze, unavailable
//!              ▼               │
//!  event ─▶ attempt ───────────┼─ handled, duplicate, skip ─▶ finished
//!                              └─ attempts used up, dead letter ─▶ kill switch ─┬─▶ table `subscriber_parked`
//!                                                                               ├─▶ retry topic
//!                                                                               └─▶ dead letter
//! ```

pub(crate) mod escalation;
pub(crate) mod failure_log;
pub(crate) mod pause;
pub(crate) mod permit;
pub(crate) mod probe;

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tracing::Span;

use super::{
    Delivery, Escalation, Order,
    clock::Clock,
    companion::Companions,
    deployment::unknown_types::UnknownTypes,
    failure::dead_letter::{DUE, DeadLetterSink, DeadLetters},
    handler::{
        Called, HandlerError, Verdict,
        router::{Core, Handled, HandlerService, Work},
    },
    options::{
        Options,
        retry::{Next, Retry},
    },
    telemetry::{
        log_limit::LogLimit,
        statistics::{Count, Counters, Statistics},
    },
};
use crate::{event::panic_text, kafka::Message, postgres::session_fault};
use escalation::{FailedRecord, REFUSED_PAUSE, retry_delay};
use failure_log::FailureLog;
use pause::{Outage, Pause};
use permit::HandlerPermit;

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
    pub(crate) dead_letter_sink: Box<dyn DeadLetterSink>,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) pause: Pause,
    pub(crate) statistics: Statistics,
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
    /// A parked event is tried again after this time.
    Again {
        after: Duration,
        attempts: u32,
        error: String,
    },
    /// The partition is revoked or the subscriber stops. The next owner of the partition handles
    /// the event.
    Abandoned,
}

impl Settled {
    /// Returns the outcome for an event that is already parked and has failed `before` times there.
    pub(crate) fn of_parked(self, before: u32) -> Self {
        match self {
            Self::Refused { error, .. } => Self::Again {
                after: REFUSED_PAUSE,
                attempts: before,
                error,
            },
            other => other,
        }
    }
}

/// The place where a message waits between two attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Lane,
    /// The table of parked events, where it has failed `before` times.
    Table {
        before: u32,
    },
}

impl Place {
    fn before(self) -> u32 {
        match self {
            Self::Lane => 0,
            Self::Table { before } => before,
        }
    }

    /// Waits for the next attempt, after `failed` attempts.
    fn again(self, after: Duration, failed: u32, error: impl FnOnce() -> String) -> Then {
        match self {
            Self::Lane => Then::Pause(after),
            Self::Table { before } => Then::Return(Settled::Again {
                after,
                attempts: before + failed,
                error: error(),
            }),
        }
    }
}

/// What follows a failed attempt.
enum Then {
    Pause(Duration),
    Return(Settled),
    /// The event shares its identity with another event that was handled.
    Conflicting,
    /// The attempts are used up, and the escalation decides.
    Escalate,
    /// The attempts of a parked event are used up.
    DeadLetter,
    /// The kill switch has tripped.
    Probe,
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

    /// Handles one message until it has an outcome. Its first attempt may already have begun.
    pub(crate) async fn settle(
        &self,
        message: &Arc<Message>,
        permit: &mut HandlerPermit<'_>,
        begun: Option<Attempt>,
    ) -> Settled {
        self.settle_with(message, permit, &self.options.retry, Place::Lane, begun)
            .await
    }

    /// Makes one attempt at a parked message that has failed `before` times since it was parked.
    /// Outages are waited out. If an earlier deployment parked the message and this one parks
    /// nothing, the message is handled like a new one, before the later ones of its aggregate.
    pub(crate) async fn settle_parked(
        &self,
        message: &Arc<Message>,
        permit: &mut HandlerPermit<'_>,
        before: u32,
    ) -> Settled {
        let (retry, place) = match &self.escalation {
            Escalation::Park(retry) => (retry, Place::Table { before }),
            _ => (&self.options.retry, Place::Lane),
        };
        let settled = self.settle_with(message, permit, retry, place, None).await;
        settled.of_parked(before)
    }

    /// Makes attempts with these retry rules until the message has an outcome. Between two attempts
    /// a message waits in its lane; a parked one waits in the table and is returned to it.
    pub(crate) async fn settle_with(
        &self,
        message: &Arc<Message>,
        permit: &mut HandlerPermit<'_>,
        retry: &Retry,
        place: Place,
        mut begun: Option<Attempt>,
    ) -> Settled {
        if begun.is_none()
            && let Some(time) = self.due_in(message)
            && !permit.pause(time).await
        {
            return Settled::Abandoned;
        }
        let (mut failed, mut outage) = (0, Outage::none(&self.pause));
        loop {
            let attempt = begun.take().unwrap_or_else(|| {
                let delivery = Delivery::one(message.clone(), failed + 1);
                self.begin(delivery, Instant::now(), &mut None)
            });
            let error = match self.end_of(attempt, message).await {
                Ok(handled) => {
                    self.handled(handled, message.kind(), 1);
                    return Settled::Finished;
                }
                Err(error) => error,
            };
            let next = match error.verdict() {
                Verdict::Unavailable => Then::Pause(outage.continues(&error)),
                _ => {
                    outage.is_over();
                    self.after_failure(message, &error, &mut failed, retry, place)
                }
            };
            let pause = match next {
                Then::Pause(pause) => pause,
                Then::Return(settled) => return settled,
                Then::Conflicting => {
                    return self.end_conflicting(message, &error, failed, permit).await;
                }
                Then::Escalate => return self.end(message, &error, failed, permit).await,
                Then::DeadLetter => {
                    let dead = FailedRecord::event(message, failed);
                    return self.dead_letter_until_sent(&dead, &error, permit).await;
                }
                Then::Probe => match self.probe(message, permit).await {
                    Some(settled) => return settled,
                    None => continue,
                },
            };
            if !permit.pause(pause).await {
                return Settled::Abandoned;
            }
        }
    }

    /// Decides what follows an attempt that failed for another reason than an outage.
    fn after_failure(
        &self,
        message: &Message,
        error: &HandlerError,
        failed: &mut u32,
        retry: &Retry,
        place: Place,
    ) -> Then {
        let chain = || error.chain();
        if error.is_conflicting() {
            return Then::Conflicting;
        }
        if error.waits_for_code() {
            self.report_waiting(message, error);
            return match place {
                // Only order per aggregate allows parking; otherwise the event waits in place.
                Place::Lane if self.options.order != Order::Aggregate => Then::Pause(WAIT_PAUSE),
                _ => Then::Return(Settled::Waits { error: chain() }),
            };
        }
        let is_dead = match error.verdict() {
            Verdict::Skip => {
                self.skipped(message, error);
                return Then::Return(Settled::Finished);
            }
            Verdict::Snooze(time) => return place.again(time, 0, chain),
            Verdict::Unavailable | Verdict::Retry => false,
            Verdict::DeadLetter => true,
        };
        *failed += 1;
        self.statistics
            .add(Count::FailedAttempts, message.kind(), 1);
        self.report_attempt(message, *failed, error);
        match retry.after(place.before() + *failed, chance()) {
            Next::After(pause) if !is_dead => place.again(pause, *failed, chain),
            _ if matches!(place, Place::Table { .. }) => Then::DeadLetter,
            // Malformed input from one producer must not pause the events of others.
            _ if !error.is_undecodable() && self.trips() => Then::Probe,
            _ => Then::Escalate,
        }
    }

    /// Makes one attempt.
    pub(crate) async fn attempt(&self, delivery: Delivery) -> Result<Handled, HandlerError> {
        let first = delivery.first().clone();
        self.end_of(self.begin(delivery, Instant::now(), &mut None), &first)
            .await
    }

    /// Begins an attempt in its own span.
    fn begin(&self, delivery: Delivery, began: Instant, pool: &mut Option<Called>) -> Attempt {
        let span = self.span(&delivery);
        // Handlers and layers are cloned for each attempt, and a `Clone` implementation may panic.
        let work =
            std::panic::catch_unwind(AssertUnwindSafe(|| self.service.begin(delivery, pool)));
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
        pool: &mut Option<Called>,
    ) -> Result<(), Attempt> {
        let mut attempt = self.begin(Delivery::one(message.clone(), 1), *now, pool);
        let polled = Pin::new(&mut attempt).poll(&mut Context::from_waker(Waker::noop()));
        *now = Instant::now();
        match polled {
            Poll::Ready(Ok(handled)) => {
                let counters = self.statistics.of(message.kind());
                counters.attempted(*now - attempt.began);
                self.handled_by(handled, counters, 1);
                if let AttemptState::Runs(Work::Handler(called)) = attempt.state {
                    *pool = Some(called);
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
        self.pause.handled(|| self.clock.instant());
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
