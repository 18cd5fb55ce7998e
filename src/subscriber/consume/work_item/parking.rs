//! Parked events: an event that is parked behind its aggregate, and the oldest one that is tried
//! again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{PartitionContext, WorkOutcome};
use crate::{
    kafka::{Incoming, Message},
    postgres::errors::with_causes,
    subscriber::{
        Escalation,
        attempt::{Settled, permit::HandlerPermit},
        failure::parked::{Discarded, Head, Mark, ParkedEvents, Setback, parked_key},
        handler::CODE_PAUSE,
        offsets::watermark::Ticket,
        options::retry::Next,
        telemetry::statistics::{Count, shown_type},
    },
};

/// Pause before an operation on parked events is retried after a database error.
pub(crate) const DATABASE_PAUSE: Duration = Duration::from_secs(1);

impl PartitionContext {
    /// Parks a record whose dead letter the broker rejected. `setback.attempts` includes the
    /// attempts before this delivery.
    pub(super) async fn set_refused_aside(
        &self,
        ticket: Ticket,
        record: &Incoming,
        event_type: &str,
        setback: &Setback,
        permit: &mut HandlerPermit<'_>,
        ended: &mut WorkOutcome,
    ) {
        if self.park_record(record, event_type, setback, permit).await {
            ended.finished.push(ticket);
            ended
                .parked
                .push((parked_key(record).into(), setback.pause));
        }
    }

    /// Parks an event behind the parked ones of its aggregate. Returns `false` if the partition is
    /// revoked before the database accepts the event.
    pub(crate) async fn park(
        &self,
        message: &Message,
        setback: &Setback,
        permit: &mut HandlerPermit<'_>,
    ) -> bool {
        let attempts = setback.attempts.saturating_add(message.attempts_before());
        let setback = Setback {
            attempts,
            ..setback.clone()
        };
        self.park_record(message.as_it_came(), message.kind(), &setback, permit)
            .await
    }

    async fn park_record(
        &self,
        record: &Incoming,
        event_type: &str,
        setback: &Setback,
        permit: &mut HandlerPermit<'_>,
    ) -> bool {
        let Some(parked_events) = &self.parked_events else {
            return false;
        };
        while let Err(error) = parked_events.append(record, setback).await {
            self.runner.close_sessions_after(&error);
            tracing::warn!(
                subscriber = self.runner.name,
                error = with_causes(&error),
                "an event cannot be parked yet"
            );
            if !permit.pause(DATABASE_PAUSE).await {
                return false;
            }
        }
        self.runner.statistics.add(Count::Parked, event_type, 1);
        true
    }

    /// Executes the decisions of operators about a parked aggregate, and handles its oldest event
    /// unless that is `due` later.
    pub(super) async fn go_on_with(
        &self,
        key: Box<[u8]>,
        due: Option<Instant>,
        permit: &mut HandlerPermit<'_>,
        ended: &mut WorkOutcome,
    ) {
        let Some(parked_events) = &self.parked_events else {
            return;
        };
        let later = match parked_events.head(&self.partition, &key).await {
            Ok(None) => {
                ended.rejoined = Some(key);
                return;
            }
            Ok(Some(head)) => {
                let later = self.obey(parked_events, &key, &head, due).await;
                match later {
                    Ok(None) => self.try_head(parked_events, &head, permit).await,
                    Ok(Some(later)) => Ok(later),
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        let pause = later.unwrap_or_else(|error| {
            self.runner.close_sessions_after(&error);
            tracing::warn!(
                subscriber = self.runner.name,
                error = with_causes(&error),
                "a parked event cannot be handled yet"
            );
            DATABASE_PAUSE
        });
        ended.parked.push((key, pause));
    }

    /// Executes the decisions of operators. Returns the time until the aggregate is due, or `None`
    /// if its oldest event must be tried now.
    async fn obey(
        &self,
        parked_events: &ParkedEvents,
        key: &[u8],
        head: &Head,
        due: Option<Instant>,
    ) -> Result<Option<Duration>, sqlx::Error> {
        if head.has_discards {
            parked_events
                .discard_marked(&self.partition, key, |event| {
                    self.report_discarded(key, event);
                })
                .await?;
        }
        match head.mark {
            // The next event of the aggregate is the oldest one now.
            Some(Mark::Discard) => return Ok(Some(Duration::ZERO)),
            Some(Mark::Retry) => {
                parked_events.take_retry(head.seq).await?;
                return Ok(None);
            }
            None => {}
        }
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        Ok(left.filter(|left| !left.is_zero()))
    }

    fn report_discarded(&self, key: &[u8], event: &Discarded) {
        let text = |bytes: &Option<Vec<u8>>| {
            bytes
                .as_deref()
                .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        };
        let event_type = text(&event.event_type);
        let kind = event_type.as_deref().unwrap_or_default();
        self.runner.statistics.add(Count::Discarded, kind, 1);
        tracing::warn!(
            subscriber = self.runner.name,
            event.id = text(&event.event_id),
            event.r#type = shown_type(kind),
            topic = &*self.partition.topic,
            partition = self.partition.number,
            offset = event.offset,
            key = %String::from_utf8_lossy(key),
            error = event.error,
            by = event.decided_by,
            "an operator has discarded a parked event: it is not handled, and the later events of \
             its key continue"
        );
    }

    /// Tries the oldest event once. Returns the time until the aggregate is due again.
    async fn try_head(
        &self,
        parked_events: &ParkedEvents,
        head: &Head,
        permit: &mut HandlerPermit<'_>,
    ) -> Result<Duration, sqlx::Error> {
        let message = match self.source.read(head.record(&self.partition)) {
            Ok(message) => Arc::new(message.with_attempts_before(head.attempts_in_all())),
            // The event was readable when it was parked, so the code has changed since. It goes to
            // the dead letters, where an operator finds it.
            Err((malformed, record)) => {
                let end = self
                    .runner
                    .settle_malformed(&record, &malformed.to_string(), permit)
                    .await;
                return after_head(
                    parked_events,
                    head,
                    end.of_parked(head.attempts.cast_unsigned()),
                )
                .await;
            }
        };
        if self.runner.core.router.route(&message).is_none() {
            return self.try_unhandled_head(parked_events, head, &message).await;
        }
        let end = self
            .runner
            .settle_parked(&message, permit, head.attempts.cast_unsigned())
            .await;
        after_head(parked_events, head, end).await
    }

    /// Returns the time that an event waits before its first attempt from the table. If this
    /// version parks nothing, an aggregate that an earlier version parked is due at once.
    pub(super) fn first_pause(&self) -> Duration {
        match &self.runner.escalation {
            Escalation::Park(retry) => match retry.after(0, 0.0) {
                Next::After(pause) => pause,
                Next::GiveUp => Duration::ZERO,
            },
            _ => Duration::ZERO,
        }
    }
}

/// Stores the outcome of the oldest event of an aggregate. Returns the time until the aggregate is
/// due again.
async fn after_head(
    parked_events: &ParkedEvents,
    head: &Head,
    end: Settled,
) -> Result<Duration, sqlx::Error> {
    match end {
        Settled::Finished | Settled::Park { .. } => parked_events
            .remove(head.seq)
            .await
            .map(|()| Duration::ZERO),
        Settled::Again {
            after,
            attempts,
            error,
        } => parked_events
            .again(head.seq, attempts, after, &error)
            .await
            .map(|()| after),
        // The due time in the table stays unchanged, because the next owner of the partition may
        // run the version that the event waits for.
        Settled::Waits { .. } => Ok(CODE_PAUSE),
        Settled::Refused { .. } | Settled::Abandoned => Ok(DATABASE_PAUSE),
    }
}
