//! One work item of a partition: runs concurrently with others and returns an outcome to the
//! partition.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::topic_role::Source;
use crate::{
    kafka::{Incoming, Malformed, Message, Partition},
    postgres::errors::with_causes,
    subscriber::{
        Escalation,
        attempt::{
            Attempt, BatchFailed, Runner, Settled, escalation::REFUSED_PAUSE, permit::HandlerPermit,
        },
        deployment::{instances::Registry, unhandled::Room},
        failure::{
            dead_letter::attempts_of,
            parked::{Head, ParkedEvents, Setback, parked_key},
        },
        handler::CODE_PAUSE,
        offsets::watermark::Ticket,
        options::{Order, retry::Next},
        telemetry::statistics::Count,
    },
};

/// Pause before an operation on parked events is retried after a database error.
pub(crate) const DATABASE_PAUSE: Duration = Duration::from_secs(1);

/// An entry of a lane.
#[derive(Debug)]
pub(crate) enum LaneEntry {
    /// An event that has a handler.
    Event(Ticket, Arc<Message>),
    /// An event that failed in a batch and is now handled alone.
    Single(Ticket, Arc<Message>),
    /// A record that is not an event, with the reason.
    Malformed(Ticket, Box<Incoming>, String),
    /// An event that has no handler here. Another member may handle it.
    Unhandled(Ticket, Arc<Message>),
    /// The oldest event of a parked aggregate.
    Parked(Box<[u8]>),
}

impl LaneEntry {
    /// Returns the size in bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Event(_, message) | Self::Single(_, message) | Self::Unhandled(_, message) => {
                message.size()
            }
            Self::Malformed(_, record, _) => record.size(),
            Self::Parked(_) => 0,
        }
    }

    pub(crate) fn key(&self) -> Option<&[u8]> {
        match self {
            Self::Event(_, message) | Self::Single(_, message) | Self::Unhandled(_, message) => {
                message.as_it_came().key()
            }
            Self::Malformed(..) | Self::Parked(_) => None,
        }
    }

    /// Returns `true` if one transaction can handle both now, which excludes events that are due
    /// later.
    pub(crate) fn goes_with(&self, other: &Self, context: &PartitionContext) -> bool {
        match (self, other) {
            (Self::Event(_, one), Self::Event(_, other)) => {
                share(one, other, |message| context.due_in(message))
            }
            _ => false,
        }
    }
}

/// Returns `true` if one transaction can handle both: they have the same kind, and neither is due
/// later.
pub(crate) fn share(
    one: &Message,
    other: &Message,
    due_in: impl Fn(&Message) -> Option<Duration>,
) -> bool {
    one.kind() == other.kind() && due_in(one).is_none() && due_in(other).is_none()
}

/// Outcome of a work item, for the partition.
#[derive(Debug, Default)]
pub(crate) struct WorkOutcome {
    pub(crate) lanes: Vec<u64>,
    pub(crate) finished: Vec<Ticket>,
    pub(crate) bytes: usize,
    /// Events that failed as a batch, by lane. They must be handled one by one.
    pub(crate) singly: Vec<(u64, Vec<LaneEntry>)>,
    /// Aggregates that are now parked or still parked, with the time until their oldest event is
    /// due.
    pub(crate) parked: Vec<(Box<[u8]>, Duration)>,
    /// An aggregate that is not parked any more.
    pub(crate) rejoined: Option<Box<[u8]>>,
}

/// Context that all work items of a partition share.
pub(crate) struct PartitionContext {
    pub(crate) runner: Arc<Runner>,
    pub(crate) parked_events: Option<Arc<ParkedEvents>>,
    pub(crate) registry: Option<Arc<Registry>>,
    pub(crate) partition: Partition,
    pub(crate) source: Source,
    /// True for a retry or redrive topic of the group, whose records have earlier attempts and may
    /// be due later.
    pub(crate) comes_back: bool,
    /// Cancelled when the partition is revoked.
    pub(crate) drain: CancellationToken,
}

/// One work item: one entry, or events that share a transaction.
pub(crate) struct WorkItem {
    pub(crate) items: Vec<LaneEntry>,
    /// The lanes of its entries, with the number of entries of each.
    pub(crate) lanes: Vec<(u64, usize)>,
    /// The aggregate of these events is parked, so they are parked behind it.
    pub(crate) parked: bool,
    /// More aggregates may be parked for another member.
    pub(crate) has_room: bool,
}

impl PartitionContext {
    /// Reads the record as an event.
    ///
    /// # Errors
    ///
    /// Returns the record and the reason if it is not an event.
    pub(crate) fn read(&self, record: Incoming) -> Result<Message, (Malformed, Box<Incoming>)> {
        let message = self.source.read(record)?;
        if !self.comes_back {
            return Ok(message);
        }
        let attempts = attempts_of(message.as_it_came(), &self.runner.name);
        Ok(message.with_attempts_before(attempts))
    }

    /// Returns the time until an event is due.
    pub(crate) fn due_in(&self, message: &Message) -> Option<Duration> {
        if self.comes_back {
            self.runner.due_in(message)
        } else {
            None
        }
    }

    /// Runs until all entries have an outcome or the partition is revoked.
    pub(crate) async fn work(
        self: Arc<Self>,
        item: WorkItem,
        permit: OwnedSemaphorePermit,
    ) -> WorkOutcome {
        let WorkItem {
            mut items,
            lanes,
            parked,
            has_room,
        } = item;
        let mut ended = WorkOutcome {
            lanes: lanes.iter().map(|(lane, _)| *lane).collect(),
            ..WorkOutcome::default()
        };
        ended.bytes = items.iter().map(LaneEntry::size).sum();
        if items.len() > 1 {
            self.together(items, &lanes, &mut ended).await;
            return ended;
        }
        let mut permit = HandlerPermit::new(&self.runner, permit, &self.drain);
        match items.pop() {
            Some(LaneEntry::Event(ticket, message) | LaneEntry::Single(ticket, message))
                if parked =>
            {
                let behind = Setback {
                    pause: self.first_pause(),
                    ..Setback::default()
                };
                ended.finished.extend(
                    self.park(&message, &behind, &mut permit)
                        .await
                        .then_some(ticket),
                );
            }
            Some(LaneEntry::Event(ticket, message) | LaneEntry::Single(ticket, message)) => {
                self.handle(ticket, &message, None, &mut permit, &mut ended)
                    .await;
            }
            Some(LaneEntry::Malformed(ticket, record, reason)) => {
                let end = self
                    .runner
                    .settle_malformed(&record, &reason, &mut permit)
                    .await;
                self.finish_malformed(ticket, &record, end, &mut permit, &mut ended)
                    .await;
            }
            Some(LaneEntry::Unhandled(ticket, message)) => {
                let room = match parked {
                    true => Room::BehindOthers,
                    false if has_room && self.runner.options.order == Order::Aggregate => {
                        Room::Free
                    }
                    false => Room::None,
                };
                self.settle_unhandled(ticket, &message, room, &mut permit, &mut ended)
                    .await;
            }
            Some(LaneEntry::Parked(key)) => self.go_on_with(key, &mut permit, &mut ended).await,
            None => {}
        }
        ended
    }

    /// Continues an event of this lane whose first attempt has begun.
    pub(crate) async fn go_on(
        self: Arc<Self>,
        lane: u64,
        ticket: Ticket,
        message: Arc<Message>,
        begun: Attempt,
        permit: OwnedSemaphorePermit,
    ) -> WorkOutcome {
        let mut ended = WorkOutcome {
            lanes: vec![lane],
            bytes: message.size(),
            ..WorkOutcome::default()
        };
        let mut permit = HandlerPermit::new(&self.runner, permit, &self.drain);
        self.handle(ticket, &message, Some(begun), &mut permit, &mut ended)
            .await;
        ended
    }

    /// Handles several events in one attempt. If it fails, they return to the front of their lanes.
    async fn together(
        &self,
        items: Vec<LaneEntry>,
        lanes: &[(u64, usize)],
        ended: &mut WorkOutcome,
    ) {
        let events = items.into_iter().filter_map(|item| match item {
            LaneEntry::Event(ticket, message) => Some((ticket, message)),
            _ => None,
        });
        let (tickets, messages): (Vec<_>, Vec<_>) = events.unzip();
        let BatchFailed { attempts } = match self.runner.settle_together(&messages).await {
            Ok(()) => {
                ended.finished = tickets;
                return;
            }
            Err(failed) => failed,
        };
        ended.bytes = 0;
        let mut items = tickets
            .into_iter()
            .zip(messages)
            .map(|(ticket, message)| LaneEntry::Single(ticket, tried(message, attempts)));
        ended.singly = lanes
            .iter()
            .map(|(lane, count)| (*lane, items.by_ref().take(*count).collect()))
            .collect();
    }

    async fn handle(
        &self,
        ticket: Ticket,
        message: &Arc<Message>,
        begun: Option<Attempt>,
        permit: &mut HandlerPermit<'_>,
        ended: &mut WorkOutcome,
    ) {
        match self.runner.settle(message, permit, begun).await {
            Settled::Finished => ended.finished.push(ticket),
            Settled::Abandoned | Settled::Again { .. } => {}
            Settled::Refused { attempts, error } => {
                let setback = Setback {
                    pause: REFUSED_PAUSE,
                    attempts,
                    error: Some(error),
                };
                self.set_refused_aside(
                    ticket,
                    message.as_it_came(),
                    message.kind(),
                    &setback,
                    permit,
                    ended,
                )
                .await;
            }
            Settled::Waits { error } => {
                if self
                    .park(
                        message,
                        &Setback {
                            error: Some(error),
                            ..Setback::default()
                        },
                        permit,
                    )
                    .await
                {
                    self.runner.statistics.held(message.kind());
                    ended.finished.push(ticket);
                    ended
                        .parked
                        .push((parked_key(message.as_it_came()).into(), CODE_PAUSE));
                }
            }
            Settled::Park { attempts, error } => {
                let setback = Setback {
                    pause: self.first_pause(),
                    attempts,
                    error: Some(error),
                };
                if !self.park(message, &setback, permit).await {
                    return;
                }
                ended.finished.push(ticket);
                ended
                    .parked
                    .push((parked_key(message.as_it_came()).into(), setback.pause));
            }
        }
    }

    /// Records the outcome of a record that is not an event.
    async fn finish_malformed(
        &self,
        ticket: Ticket,
        record: &Incoming,
        end: Settled,
        permit: &mut HandlerPermit<'_>,
        ended: &mut WorkOutcome,
    ) {
        match end {
            Settled::Finished => ended.finished.push(ticket),
            Settled::Refused { attempts, error } | Settled::Park { attempts, error } => {
                let setback = Setback {
                    pause: REFUSED_PAUSE,
                    attempts,
                    error: Some(error),
                };
                self.set_refused_aside(ticket, record, "", &setback, permit, ended)
                    .await;
            }
            Settled::Abandoned | Settled::Again { .. } | Settled::Waits { .. } => {}
        }
    }

    /// Parks a record whose dead letter the broker rejected. `setback.attempts` includes the
    /// attempts before this delivery.
    async fn set_refused_aside(
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

    /// Handles the oldest event of a parked aggregate.
    async fn go_on_with(
        &self,
        key: Box<[u8]>,
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
            Ok(Some(head)) => self.try_head(parked_events, &head, permit).await,
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
    fn first_pause(&self) -> Duration {
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

/// Returns the message with `attempts` more attempts.
pub(crate) fn tried(message: Arc<Message>, attempts: u32) -> Arc<Message> {
    if attempts == 0 {
        return message;
    }
    let message = Arc::unwrap_or_clone(message);
    let before = message.attempts_before().saturating_add(attempts);
    Arc::new(message.with_attempts_before(before))
}
