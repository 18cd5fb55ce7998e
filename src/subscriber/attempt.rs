//! Lifecycle of an event from its first attempt until it is handled, parked, a dead letter, or left
//! to the next owner of its partition.
//!
//! ```text
//!              ┌── pause ◀─ retry, snooze, unavailable
//!              ▼               │
//!  event ─▶ attempt ───────────┼─ handled, duplicate, skip ─▶ finished
//!                              └─ attempts used up, dead letter ─▶ kill switch ─┬─▶ parked
//!                                                                               ├─▶ retry topic
//!                                                                               └─▶ dead letter
//! ```
//!
//! | file | content |
//! |---|---|
//! | `call` | one call of the handlers |
//! | `outcome` | the outcome of an event, and what follows a failed attempt |
//! | `escalation` | the destination of an event that has used up its attempts |
//! | `dead_letter` | records that become dead letters |
//! | `failure_log` | log lines about failing events |
//! | `pause` | the pause of all events during an outage, or by the kill switch |
//! | `permit` | the permission to run a handler |
//! | `probe` | the event that is tried while the kill switch has tripped |

mod call;
pub(crate) mod dead_letter;
pub(crate) mod escalation;
pub(crate) mod failure_log;
mod outcome;
pub(crate) mod pause;
pub(crate) mod permit;
pub(crate) mod probe;
mod spans;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::{
    Delivery, Escalation, Order,
    clock::Clock,
    companion::Companions,
    deployment::unknown_types::UnknownTypes,
    failure::dead_letter::{DUE, DeadLetterSink, DeadLetters},
    handler::{
        HandlerError, Verdict,
        router::{Core, Handled, HandlerService},
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
use crate::{backoff::random, kafka::Message, postgres::session_fault};
pub(crate) use call::Attempt;
use dead_letter::FailedRecord;
use escalation::retry_delay;
use failure_log::FailureLog;
use outcome::Then;
pub(crate) use outcome::{BatchFailed, Place, Settled};
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
    pub(crate) pause: Arc<Pause>,
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
            if begun.is_none() && !permit.while_held(&self.pause).await {
                return Settled::Abandoned;
            }
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
        match retry.after(place.before() + *failed, random()) {
            Next::After(pause) if !is_dead => place.again(pause, *failed, chain),
            _ if matches!(place, Place::Table { .. }) => Then::DeadLetter,
            // Malformed input from one producer must not pause the events of others.
            _ if !error.is_undecodable() && self.trips() => Then::Probe,
            _ => Then::Escalate,
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
