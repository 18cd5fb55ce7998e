//! One work item of a partition: runs concurrently with others and returns an outcome to the
//! partition.

mod lane_entry;
mod parking;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

pub(crate) use lane_entry::{LaneEntry, share};
pub(crate) use parking::DATABASE_PAUSE;

use super::topic_role::Source;
use crate::{
    kafka::{Incoming, Malformed, Message, Partition},
    subscriber::{
        attempt::{
            Attempt, BatchFailed, Runner, Settled, dead_letter::REFUSED_PAUSE,
            permit::HandlerPermit,
        },
        control::Control,
        deployment::{instances::Registry, unhandled::Room},
        failure::{
            dead_letter::attempts_of,
            parked::{ParkedEvents, Setback, parked_key},
        },
        handler::CODE_PAUSE,
        offsets::watermark::Ticket,
        options::Order,
    },
};

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
    pub(crate) control: Option<Arc<Control>>,
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
            Some(LaneEntry::Parked(key, due)) => {
                self.go_on_with(key, due, &mut permit, &mut ended).await;
            }
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
