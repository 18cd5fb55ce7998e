//! The relay: its start with options, and the supervision of its sessions, one after the other.
//!
//! ```text
//!          ┌──────── retry after a pause ◀──────── transient ◀─────────┐
//!          ▼                                                           │
//!   lease (stand by) ─▶ take over the row ─▶ Kafka answers ─▶ recovery ─▶ source selector
//!                                                                      │
//!                     end ◀──────── an operator is needed ◀────────────┤
//!                     end ◀── confirm ◀── drain ◀── shutdown ◀─────────┘
//! ```
//!
//! | file | content |
//! |---|---|
//! | `session` | one session: start, run, drain |
//! | `prepare` | the steps of the start, in order |
//! | `handover` | the state that a session leaves to the next |
//! | `undrained` | the judgement of a relay that ends before all events are durable |
//! | `watchdog` | stalls, and sessions that hang |
//! | `access` | retries after refused connections |

mod access;
pub(crate) mod handover;
mod prepare;
mod session;
mod undrained;
mod watchdog;

use std::{ops::Range, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::{
    access::Refusals,
    handover::Carried,
    session::SessionEnd,
    undrained::Undrained,
    watchdog::{Supervised, Watchdog, hang_limit},
};
use super::{
    OnUndeliverable, RelayError, RelayMetrics, RelayOptions,
    error::{Interruption, Meaning},
    monitor::metrics::Component,
    options::{is_dead_letter_topic, is_relay_name},
    routing::template::TopicTemplate,
    startup::transaction_timeout,
};
use crate::backoff::{Backoff, random};

/// First and longest pause between two sessions.
const RETRY: Range<Duration> = Duration::from_millis(200)..Duration::from_secs(5);

/// A session that lasts longer than this was successful: the next pause is the first again.
const GOOD_SESSION: Duration = Duration::from_secs(10);

/// A relay that is ready to run.
pub struct Relay {
    options: RelayOptions,
    observer: RelayMetrics,
}

impl Relay {
    /// Creates a relay with these options. It does not connect yet.
    ///
    /// # Errors
    ///
    /// Returns [`RelayError::Options`] if an option is invalid.
    pub fn new(options: RelayOptions) -> Result<Self, RelayError> {
        let name = &options.name;
        if !is_relay_name(name) {
            return Err(RelayError::Options(format!(
                "`{name}` is not a valid relay name: use at most 40 lower case letters, digits and \
                 `_`"
            )));
        }
        TopicTemplate::parse(&options.topic).map_err(|error| {
            RelayError::Options(format!("topic template `{}`: {error}", options.topic))
        })?;
        let dead = &options.undeliverable.dead_letter_topic;
        if !is_dead_letter_topic(dead) {
            return Err(RelayError::Options(format!(
                "`{dead}` is not a valid dead letter topic: use letters, digits, `.`, `_`, `-` and \
                 {{topic}}, and not {{topic}} alone"
            )));
        }
        if options.debezium.is_some() && options.undeliverable.policy == OnUndeliverable::Park {
            return Err(RelayError::Options(
                "events of a Debezium table cannot be parked, because nothing keeps their rows: \
                 set the policy for undeliverable events to DeadLetter or Stop"
                    .into(),
            ));
        }
        let observer = RelayMetrics::new(options.stall_after);
        Ok(Self { options, observer })
    }

    /// Returns the metrics and the readiness of the relay.
    pub fn observer(&self) -> RelayMetrics {
        self.observer.clone()
    }

    /// Runs until `shutdown` is cancelled (then drains and returns `Ok`), or until an operator is
    /// needed.
    ///
    /// # Errors
    ///
    /// Returns [`RelayError::Refused`] with the cause and the remedy if an operator is needed.
    /// Returns [`RelayError::GraceExceeded`] if draining took too long, and
    /// [`RelayError::NotDrained`] if a failure ended the drain. Both are returned only if an event
    /// was in flight. A relay without one, or between two sessions, returns `Ok`: its unpublished
    /// events wait in the outbox.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RelayError> {
        let relay = Arc::new(Self {
            options: self.options.clone(),
            observer: self.observer.clone(),
        });
        let mut watchdog = Watchdog::new(
            &self.observer,
            hang_limit(&self.options),
            self.options.shutdown_grace,
        );
        let (mut carried, mut refusals) = (Carried::default(), Refusals::default());
        let (backoff, mut failed) = (Backoff::new(RETRY), 0_u32);
        loop {
            let began = Instant::now();
            let lost_state = carried.without_session();
            let dropped = CancellationToken::new();
            let session = relay
                .clone()
                .run_session(carried, dropped.clone(), shutdown.clone());
            let interruption = match watchdog.supervise(session, &dropped, &shutdown).await {
                Supervised::Ended((_, SessionEnd::ShutDown(outcome))) => return outcome,
                Supervised::Ended((left, SessionEnd::Interrupted(interruption))) => {
                    carried = left;
                    interruption
                }
                Supervised::Hung(step) => {
                    carried = lost_state;
                    Interruption::Hung(step)
                }
                Supervised::Overdue => return self.overdue(),
            };
            if let Interruption::TransactionTimeout(refused) = interruption {
                tokio::select! {
                    shorter = transaction_timeout::shorter(&self.options.kafka, refused) => {
                        let refusal = |refusal: Interruption| RelayError::Refused(refusal.full());
                        carried.transaction_timeout = Some(shorter.map_err(refusal)?);
                    }
                    () = shutdown.cancelled() => {}
                }
            }
            if let Meaning::NeedsPerson(remedy) = interruption.meaning()
                && !(carried.direct
                    && interruption.may_be_a_change_of_access()
                    && refusals.may_retry(Instant::now()))
            {
                return Err(RelayError::Refused(remedy));
            }
            self.report(&interruption);
            let at_once;
            (carried, at_once) = carried.after(&interruption);
            if at_once || began.elapsed() > GOOD_SESSION {
                failed = 0;
            }
            failed = failed.saturating_add(1);
            let wait = backoff.wait(failed, random());
            let text = interruption.explained();
            if shutdown.is_cancelled() {
                tracing::warn!("the last session ended: {text}; no other one starts");
                return Ok(());
            }
            tracing::warn!("{text}; tries again in {} ms", wait.as_millis());
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Exports an interruption.
    fn report(&self, interruption: &Interruption) {
        let part = part(interruption);
        let side = match part {
            Component::Kafka => "kafka",
            _ => "postgres",
        };
        self.observer.interrupted(part, interruption.explained());
        self.observer.reconnected(side);
        self.observer.leader(false);
        self.observer.parked(0, 0);
    }

    /// Ends a relay whose session did not stop within the grace: a wait in it does not respond.
    fn overdue(&self) -> Result<(), RelayError> {
        let pulse = self.observer.pulse();
        let step = pulse.current_step();
        tracing::warn!(
            step,
            "the session did not respond within the shutdown grace and is abandoned"
        );
        let late = Undrained::Late(format!("the session still was {step}"));
        match pulse.outstanding() {
            Some(outstanding) => late.outcome(&outstanding, self.options.shutdown_grace),
            None => Ok(()),
        }
    }
}

/// Returns the readiness check that shows an interruption.
fn part(interruption: &Interruption) -> Component {
    match interruption {
        _ if interruption.meaning() == Meaning::ProducerBroken => Component::Kafka,
        Interruption::Topic(_) => Component::Kafka,
        Interruption::LeaseLost => Component::Lease,
        Interruption::Connections { .. } | Interruption::Waiting(_) => Component::Database,
        _ if interruption.is_of_connecting() => Component::Database,
        _ => Component::Stream,
    }
}
