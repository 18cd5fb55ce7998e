//! One partition: reads its feed, runs its lanes and tracks its finished records.

mod lane_choice;
mod parked_aggregates;
mod progress;
mod skipping;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::Instant;

use parked_aggregates::{Marked, is_parked, next_decision};
pub(crate) use progress::Progress;

use super::{
    lanes::Lanes,
    message_pool::MessagePool,
    work_item::{LaneEntry, PartitionContext, WorkItem, WorkOutcome},
};
use crate::{
    kafka::{Feed, Incoming, Message},
    subscriber::{
        attempt::Attempt,
        deployment::unhandled::HELD_AGGREGATES_MAX,
        offsets::watermark::{Ticket, Watermark},
        options::Options,
    },
};

/// Maximum number of records that are read, or handled without waiting, before other tasks get
/// their turn.
const SLICE: usize = 128;

/// The same limit as a time, for handlers that are slow without waiting. Revocation of the
/// partition is also checked between slices.
const SLICE_TIME: Duration = Duration::from_millis(5);

/// State of one partition while this member owns it.
pub(crate) struct PartitionTask {
    feed: Feed,
    context: Arc<PartitionContext>,
    progress: Arc<Progress>,
    /// Number of unfinished records, and of all records from the first unfinished one on: copies of
    /// the watermark's values that need no lock.
    unfinished: usize,
    span: usize,
    lanes: Lanes<LaneEntry>,
    hasher: foldhash::quality::RandomState,
    running: JoinSet<WorkOutcome>,
    bytes: usize,
    /// Kept from one event to the next while events are handled in this task.
    permit: Option<OwnedSemaphorePermit>,
    /// The event that was handled last in this task. Its end is not in the watermark yet.
    handled: Option<Ticket>,
    /// The reusable memory of that event.
    pool: MessagePool,
    /// End time of the last event handled in this task.
    now: Option<std::time::Instant>,
    /// Start time of the first event of this slice.
    slice_began: Option<std::time::Instant>,
    /// Parked aggregates, each with the due time of its oldest event. The time is `None` while that
    /// event is on its lane.
    parked_aggregates: HashMap<Box<[u8]>, Option<Instant>>,
    /// The partitions with parked events about which an operator has decided.
    marked: Option<Marked>,
}

impl PartitionTask {
    pub(crate) fn new(feed: Feed, context: PartitionContext, progress: Arc<Progress>) -> Self {
        Self {
            marked: context.control.as_ref().map(|control| control.marked()),
            feed,
            context: Arc::new(context),
            progress,
            unfinished: 0,
            span: 0,
            lanes: Lanes::new(),
            hasher: foldhash::quality::RandomState::default(),
            running: JoinSet::new(),
            bytes: 0,
            permit: None,
            handled: None,
            pool: MessagePool::default(),
            now: None,
            slice_began: None,
            parked_aggregates: HashMap::new(),
        }
    }

    /// Handles records until the partition is revoked, then waits for the running ones.
    pub(crate) async fn run(mut self) {
        if !self.recall_parked().await {
            return;
        }
        while !self.context.drain.is_cancelled() {
            self.wake_parked();
            self.heed_decisions().await;
            while let Some(ended) = self.running.try_join_next() {
                self.end(ended.expect("a work item does not panic"));
            }
            let started = self.start_ready();
            let read = self.read();
            self.end_slice();
            if started + read > 0 {
                tokio::task::yield_now().await;
            } else {
                self.wait().await;
            }
        }
        self.end_slice();
        while let Some(ended) = self.running.join_next().await {
            self.end(ended.expect("a work item does not panic"));
        }
    }

    /// Ends the slice, so that other tasks get their turn.
    fn end_slice(&mut self) {
        self.tell_handled();
        (self.permit, self.now, self.slice_began) = (None, None, None);
    }

    /// Returns `true` if this slice has used up its time.
    fn is_slice_over(&self) -> bool {
        self.now
            .zip(self.slice_began)
            .is_some_and(|(now, began)| now - began > SLICE_TIME)
    }

    /// Waits for new work.
    async fn wait(&mut self) {
        // An idle partition should not hold memory for reuse.
        self.pool = MessagePool::default();
        let (wants_permit, has_room) = (
            self.lanes.has_ready() && self.context.runner.pause.is_running(),
            self.has_room(),
        );
        let due = self.parked_aggregates.values().flatten().min().copied();
        let permits = self.context.runner.permits.clone();
        let pause = &self.context.runner.pause;
        tokio::select! {
            biased;
            () = self.context.drain.cancelled() => {}
            Some(ended) = self.running.join_next() => {
                self.end(ended.expect("a work item does not panic"))
            }
            permit = permits.acquire_owned(), if wants_permit => {
                self.permit = permit.ok();
                self.start();
            }
            () = pause.running(), if !pause.is_running() => {}
            () = next_decision(self.marked.as_mut()) => {}
            () = self.feed.readable(), if has_room => {}
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        // Events handled here do not belong to a slice. Without this call, the next slice could be
        // over before it reads anything, and the records that are available now would stay unread
        // because nothing wakes the task for them again.
        self.end_slice();
    }

    // === reading ===

    /// Reads available records, up to a limit. Returns their number.
    fn read(&mut self) -> usize {
        for read in 0..SLICE {
            if !self.has_room() || self.is_slice_over() {
                return read;
            }
            let Some(record) = self.feed.next(|| self.pool.buffers()) else {
                return read;
            };
            self.accept(record);
        }
        SLICE
    }

    fn has_room(&self) -> bool {
        self.unfinished
            .saturating_sub(usize::from(self.handled.is_some()))
            < self.context.runner.options.buffer
            && self.span < Options::SPAN
            && self.bytes < Options::BUFFER_BYTES
    }

    fn accept(&mut self, record: Incoming) {
        let Some(ticket) = self.note(|watermark| watermark.add(record.offset)) else {
            return;
        };
        let (lane, item) = match self.context.read(record) {
            Ok(message) if self.context.runner.core.router.route(&message).is_none() => {
                if self.may_skip(&message) {
                    return self.skip(ticket, &message);
                }
                (
                    self.lane_of(message.as_it_came()),
                    LaneEntry::Unhandled(ticket, Arc::new(message)),
                )
            }
            Ok(message) if self.may_begin(&message) => {
                let message = self.pool.share(message);
                match self.begin(ticket, &message) {
                    None => self.pool.keep(message),
                    Some(begun) => {
                        let lane = self.lane_of(message.as_it_came());
                        self.lanes.occupy(lane);
                        self.go_on(lane, ticket, message, begun);
                    }
                }
                return;
            }
            Ok(message) => (
                self.lane_of(message.as_it_came()),
                LaneEntry::Event(ticket, Arc::new(message)),
            ),
            Err((malformed, record)) => (
                self.lane_of(&record),
                LaneEntry::Malformed(ticket, record, malformed.to_string()),
            ),
        };
        self.bytes += item.size();
        self.lanes.push(lane, item);
    }

    // === starting and ending ===

    /// Starts ready lanes while permits are available. Returns the number of started work items.
    fn start_ready(&mut self) -> usize {
        for started in 0..SLICE {
            if !self.lanes.has_ready()
                || !self.context.runner.pause.is_running()
                || self.is_slice_over()
                || !self.has_permit()
            {
                return started;
            }
            self.start();
        }
        SLICE
    }

    fn has_permit(&mut self) -> bool {
        if self.permit.is_none() {
            self.permit = self.context.runner.permits.clone().try_acquire_owned().ok();
        }
        self.permit.is_some()
    }

    /// Returns `true` if an event that has just been read can be handled before it is queued on its
    /// lane, because it would be the next one to start.
    fn may_begin(&mut self, message: &Message) -> bool {
        self.context.runner.options.batch == 1
            && !self.lanes.has_ready()
            && (self.lanes.are_free() || self.lanes.is_free(self.lane_of(message.as_it_came())))
            && self.context.runner.pause.is_running()
            && !self.is_parked(message.as_it_came().key())
            && self.context.due_in(message).is_none()
            && self.has_permit()
    }

    /// Starts the next lane, if there is a permit.
    fn start(&mut self) {
        let context = &self.context;
        let (max, goes_with) = (
            context.runner.options.batch,
            |one: &LaneEntry, other: &LaneEntry| one.goes_with(other, context),
        );
        // Events that are parked behind their aggregate go one by one.
        let parked = self
            .lanes
            .next()
            .is_some_and(|next| self.is_parked(next.key()));
        let Some(permit) = self.permit.take() else {
            return;
        };
        // Events of other aggregates share the transaction, up to the batch size.
        let parked_aggregates = &self.parked_aggregates;
        let joins = |next: &LaneEntry| !is_parked(parked_aggregates, next.key());
        let Some((items, lanes)) =
            self.lanes
                .start_several(if parked { 1 } else { max }, goes_with, joins)
        else {
            return;
        };
        match &items[..] {
            [LaneEntry::Event(ticket, message)] if !parked && context.due_in(message).is_none() => {
                self.permit = Some(permit);
                self.bytes = self.bytes.saturating_sub(message.size());
                let (ticket, message) = (*ticket, message.clone());
                let lane = lanes[0].0;
                match self.begin(ticket, &message) {
                    None => self.lanes.finish(lane),
                    Some(begun) => self.go_on(lane, ticket, message, begun),
                }
            }
            _ => {
                let item = WorkItem {
                    items,
                    lanes,
                    parked,
                    has_room: self.parked_aggregates.len() < HELD_AGGREGATES_MAX,
                };
                self.running.spawn(self.context.clone().work(item, permit));
            }
        }
    }

    /// Begins to handle an event with the current permit. A handler that does not wait is called
    /// directly, without its own task. Otherwise returns the attempt to continue.
    fn begin(&mut self, ticket: Ticket, message: &Arc<Message>) -> Option<Attempt> {
        self.tell_handled();
        // The end of one event is used as the beginning of the next, because reading the clock
        // costs a tenth of the time of a small event.
        let mut now = self.now.unwrap_or_else(std::time::Instant::now);
        self.slice_began.get_or_insert(now);
        let handled = self
            .context
            .runner
            .handle_now(message, &mut now, &mut self.pool.called);
        self.now = Some(now);
        handled.map(|()| self.handled = Some(ticket)).err()
    }

    /// Spawns a task that continues an attempt. The lane of its event is marked as running already.
    fn go_on(&mut self, lane: u64, ticket: Ticket, message: Arc<Message>, begun: Attempt) {
        let permit = self.permit.take().expect("an attempt holds a permit");
        self.bytes += message.size();
        self.running.spawn(
            self.context
                .clone()
                .go_on(lane, ticket, message, begun, permit),
        );
    }

    fn end(&mut self, ended: WorkOutcome) {
        self.note(|watermark| {
            ended
                .finished
                .iter()
                .for_each(|ticket| watermark.finish(*ticket))
        });
        self.bytes = self.bytes.saturating_sub(ended.bytes);
        if !ended.parked.is_empty() || ended.rejoined.is_some() {
            self.parked_aggregates.extend(
                ended
                    .parked
                    .into_iter()
                    .map(|(key, after)| (key, Some(Instant::now() + after))),
            );
            if let Some(key) = ended.rejoined {
                self.parked_aggregates.remove(&key);
            }
            self.progress
                .parked
                .store(self.parked_aggregates.len(), Ordering::Relaxed);
        }
        for (lane, items) in ended.singly {
            self.lanes.put_back(lane, items);
        }
        // After `parked_aggregates` is updated: the next event of the lane may belong there.
        ended.lanes.iter().for_each(|lane| self.lanes.finish(*lane));
    }

    /// Records the last event handled in this task in the watermark. Otherwise this is done
    /// together with the next record, which saves a lock.
    fn tell_handled(&mut self) {
        if self.handled.is_some() {
            self.note(|_| ());
        }
    }

    /// Updates the watermark and copies its counts.
    fn note<T>(&mut self, write: impl FnOnce(&mut Watermark) -> T) -> T {
        let mut watermark = self.progress.watermark();
        if let Some(ticket) = self.handled.take() {
            watermark.finish(ticket);
        }
        let written = write(&mut watermark);
        (self.unfinished, self.span) = (watermark.unfinished(), watermark.span());
        written
    }
}
