//! One partition: reads its feed, keeps its lanes, and knows what is finished.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{
    lanes::Lanes,
    message_pool::Spare,
    work_item::{Ended, Item, Site, Unit},
};
use crate::{
    kafka::{Feed, Incoming, Message},
    postgres::errors::with_causes,
    subscriber::{
        Meta,
        attempt::Attempt,
        deployment::{instances::Claim, unhandled::HELD_AGGREGATES_MAX},
        offsets::watermark::{Ticket, Watermark},
        options::{Options, Order},
    },
};

/// How many records are read, or ended without a pause, before other tasks get their turn.
const SLICE: usize = 128;

/// The same for handlers that take their time without waiting. Whether the partition is given up is looked at between slices too.
const SLICE_TIME: Duration = Duration::from_millis(5);

/// How far a partition is: what its task tells the polling thread.
pub(crate) struct Progress {
    watermark: Mutex<Watermark>,
    /// How many of its aggregates wait in the detour.
    pub(crate) detoured: AtomicUsize,
}

impl Progress {
    pub(crate) fn new(watermark: Watermark) -> Self {
        Self {
            watermark: Mutex::new(watermark),
            detoured: AtomicUsize::new(0),
        }
    }

    /// What is finished. Locked for nanoseconds.
    pub(crate) fn watermark(&self) -> MutexGuard<'_, Watermark> {
        self.watermark
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything about one partition while this member has it.
pub(crate) struct PartitionTask {
    feed: Feed,
    site: Arc<Site>,
    progress: Arc<Progress>,
    /// How many records are not finished, and how many there are from the first of these on: as the watermark has it, without its lock.
    unfinished: usize,
    span: usize,
    lanes: Lanes<Item>,
    hasher: foldhash::quality::RandomState,
    running: JoinSet<Ended>,
    bytes: usize,
    /// Kept from one event to the next while these are handled here.
    permit: Option<OwnedSemaphorePermit>,
    /// The last of these, of which the watermark knows nothing yet.
    handled: Option<Ticket>,
    /// Its memory.
    spare: Spare,
    /// When the last of these ended.
    now: Option<std::time::Instant>,
    /// When the first of this slice began.
    slice_began: Option<std::time::Instant>,
    /// Aggregates that wait in the detour, and when the oldest event of each is due; none while it is on its lane.
    detours: HashMap<Box<[u8]>, Option<Instant>>,
}

impl PartitionTask {
    pub(crate) fn new(feed: Feed, site: Site, progress: Arc<Progress>) -> Self {
        Self {
            feed,
            site: Arc::new(site),
            progress,
            unfinished: 0,
            span: 0,
            lanes: Lanes::new(),
            hasher: foldhash::quality::RandomState::default(),
            running: JoinSet::new(),
            bytes: 0,
            permit: None,
            handled: None,
            spare: Spare::default(),
            now: None,
            slice_began: None,
            detours: HashMap::new(),
        }
    }

    /// Handles records until the partition is given up; then waits for what runs.
    pub(crate) async fn run(mut self) {
        if !self.recall_detours().await {
            return;
        }
        while !self.site.drain.is_cancelled() {
            self.wake_detours();
            while let Some(ended) = self.running.try_join_next() {
                self.end(
                    ended.expect("handlers' panics are caught, and a unit has none of its own"),
                );
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
            self.end(ended.expect("handlers' panics are caught, and a unit has none of its own"));
        }
    }

    /// Others have their turn.
    fn end_slice(&mut self) {
        self.tell_handled();
        (self.permit, self.now, self.slice_began) = (None, None, None);
    }

    /// Whether this slice has taken its time.
    fn is_slice_over(&self) -> bool {
        self.now
            .zip(self.slice_began)
            .is_some_and(|(now, began)| now - began > SLICE_TIME)
    }

    /// Waits until there is something to do.
    async fn wait(&mut self) {
        // Who has little to do has no memory to keep for it.
        self.spare = Spare::default();
        let (wants_permit, has_room) = (
            self.lanes.has_ready() && self.site.runner.gate.is_open(),
            self.has_room(),
        );
        let due = self.detours.values().flatten().min().copied();
        let permits = self.site.runner.permits.clone();
        tokio::select! {
            biased;
            () = self.site.drain.cancelled() => {}
            Some(ended) = self.running.join_next() => self.end(ended.expect("handlers' panics are caught, and a unit has none of its own")),
            permit = permits.acquire_owned(), if wants_permit => {
                self.permit = permit.ok();
                self.start();
            }
            () = self.site.runner.gate.opened(), if !self.site.runner.gate.is_open() => {}
            () = self.feed.readable(), if has_room => {}
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        // What was handled here is of no slice. One that were over before it has read would leave unread what nobody tells of again.
        self.end_slice();
    }

    // === reading ===

    /// Reads what is here, up to a bound; how many records.
    fn read(&mut self) -> usize {
        for read in 0..SLICE {
            if !self.has_room() || self.is_slice_over() {
                return read;
            }
            let Some(record) = self.feed.next(|| self.spare.buffers()) else {
                return read;
            };
            self.accept(record);
        }
        SLICE
    }

    fn has_room(&self) -> bool {
        self.unfinished
            .saturating_sub(usize::from(self.handled.is_some()))
            < self.site.runner.options.buffer
            && self.span < Options::SPAN
            && self.bytes < Options::BUFFER_BYTES
    }

    fn accept(&mut self, record: Incoming) {
        let Some(ticket) = self.note(|watermark| watermark.add(record.offset)) else {
            return;
        };
        let (lane, item) = match self.site.read(record) {
            Ok(message) if self.site.runner.core.router.route(&message).is_none() => {
                if self.may_skip(&message) {
                    return self.skip(ticket, &message);
                }
                (
                    self.lane_of(message.as_it_came()),
                    Item::Unhandled(ticket, Arc::new(message)),
                )
            }
            Ok(message) if self.may_begin(&message) => {
                let message = self.spare.share(message);
                match self.begin(ticket, &message) {
                    None => self.spare.keep(message),
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
                Item::Event(ticket, Arc::new(message)),
            ),
            Err((malformed, record)) => (
                self.lane_of(&record),
                Item::Malformed(ticket, record, malformed.to_string()),
            ),
        };
        self.bytes += item.size();
        self.lanes.push(lane, item);
    }

    /// Whether it is known that no other member handles an event without a handler, and that no saga waits for it.
    fn may_skip(&self, message: &Message) -> bool {
        self.site
            .registry
            .as_ref()
            .is_none_or(|registry| registry.known_claim(message.kind()) == Some(Claim::Free))
            && self
                .site
                .runner
                .companions
                .may_skip(Meta::correlation_of(message))
    }

    fn skip(&mut self, ticket: Ticket, message: &Message) {
        self.site.runner.unknown(message);
        self.note(|watermark| watermark.finish(ticket));
    }

    fn lane_of(&self, record: &Incoming) -> u64 {
        match (self.site.runner.options.order, record.key()) {
            (Order::Partition, _) => 0,
            (Order::Aggregate, Some(key)) => self.hasher.hash_one(key),
            // Its events go behind those that wait, one after the other.
            (_, Some(key)) if self.is_detoured(Some(key)) => self.hasher.hash_one(key),
            // An offset is one of a kind; mixed, since the map takes it as it is.
            (Order::Aggregate, None) | (Order::None, _) => self.hasher.hash_one(record.offset),
        }
    }

    /// The lane of an aggregate that waits in the detour: that of its events.
    fn detour_lane(&self, key: &[u8]) -> u64 {
        match self.site.runner.options.order {
            Order::Partition => 0,
            Order::Aggregate | Order::None => self.hasher.hash_one(key),
        }
    }

    // === starting and ending ===

    /// Starts what may start, as long as there are permits; how many units.
    fn start_ready(&mut self) -> usize {
        for started in 0..SLICE {
            if !self.lanes.has_ready()
                || !self.site.runner.gate.is_open()
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
            self.permit = self.site.runner.permits.clone().try_acquire_owned().ok();
        }
        self.permit.is_some()
    }

    /// Whether an event that has just come can be handled before it is put on its lane: it would be the next to start.
    fn may_begin(&mut self, message: &Message) -> bool {
        self.site.runner.options.batch == 1
            && !self.lanes.has_ready()
            && (self.lanes.are_free() || self.lanes.is_free(self.lane_of(message.as_it_came())))
            && self.site.runner.gate.is_open()
            && !self.is_detoured(message.as_it_came().key())
            && self.site.due_in(message).is_none()
            && self.has_permit()
    }

    /// Starts the next lane, if there is a permit.
    fn start(&mut self) {
        let site = &self.site;
        let (max, goes_with) = (site.runner.options.batch, |one: &Item, other: &Item| {
            one.goes_with(other, site)
        });
        // What goes behind its waiting aggregate goes one by one.
        let detoured = self
            .lanes
            .next()
            .is_some_and(|next| self.is_detoured(next.key()));
        let Some(permit) = self.permit.take() else {
            return;
        };
        // Other aggregates' events share the transaction, if it may hold more.
        let detours = &self.detours;
        let joins = |next: &Item| !is_detoured(detours, next.key());
        let Some((items, lanes)) =
            self.lanes
                .start_several(if detoured { 1 } else { max }, goes_with, joins)
        else {
            return;
        };
        match &items[..] {
            [Item::Event(ticket, message)] if !detoured && site.due_in(message).is_none() => {
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
                let unit = Unit {
                    items,
                    lanes,
                    detoured,
                    has_room: self.detours.len() < HELD_AGGREGATES_MAX,
                };
                self.running.spawn(self.site.clone().work(unit, permit));
            }
        }
    }

    /// Begins with an event by the permit that is here. A handler that does not wait is called here and now, without a task of its own; otherwise there is an attempt to
    /// go on with.
    fn begin(&mut self, ticket: Ticket, message: &Arc<Message>) -> Option<Attempt> {
        self.tell_handled();
        // The end of one is the beginning of the next: a look at the clock costs a tenth of what a small event does.
        let mut now = self.now.unwrap_or_else(std::time::Instant::now);
        self.slice_began.get_or_insert(now);
        let handled = self
            .site
            .runner
            .handle_now(message, &mut now, &mut self.spare.called);
        self.now = Some(now);
        handled.map(|()| self.handled = Some(ticket)).err()
    }

    /// Goes on with an event that has begun, whose lane runs.
    fn go_on(&mut self, lane: u64, ticket: Ticket, message: Arc<Message>, begun: Attempt) {
        let permit = self.permit.take().expect("nothing begins without a permit");
        self.bytes += message.size();
        self.running.spawn(
            self.site
                .clone()
                .go_on(lane, ticket, message, begun, permit),
        );
    }

    fn end(&mut self, ended: Ended) {
        self.note(|watermark| {
            ended
                .finished
                .iter()
                .for_each(|ticket| watermark.finish(*ticket))
        });
        self.bytes = self.bytes.saturating_sub(ended.bytes);
        if !ended.parked.is_empty() || ended.rejoined.is_some() {
            self.detours.extend(
                ended
                    .parked
                    .into_iter()
                    .map(|(key, after)| (key, Some(Instant::now() + after))),
            );
            if let Some(key) = ended.rejoined {
                self.detours.remove(&key);
            }
            self.progress
                .detoured
                .store(self.detours.len(), Ordering::Relaxed);
        }
        for (lane, items) in ended.singly {
            self.lanes.put_back(lane, items);
        }
        // After the detours are known: the next of the lane may belong there.
        ended.lanes.iter().for_each(|lane| self.lanes.finish(*lane));
    }

    // === detours ===

    /// Learns which aggregates wait from before; false if the partition is given up meanwhile.
    async fn recall_detours(&mut self) -> bool {
        let Some(detour) = self.site.detour.clone() else {
            return true;
        };
        loop {
            let error = match detour.keys(&self.feed.partition).await {
                Ok(keys) => {
                    let now = Instant::now();
                    self.detours = keys
                        .into_iter()
                        .map(|(key, after)| (key.into(), Some(now + after)))
                        .collect();
                    self.progress
                        .detoured
                        .store(self.detours.len(), Ordering::Relaxed);
                    return true;
                }
                Err(error) => error,
            };
            self.site.runner.close_sessions_after(&error);
            tracing::warn!(
                subscriber = self.site.runner.name,
                topic = &*self.feed.partition.topic,
                error = with_causes(&error),
                "which aggregates wait is not known yet"
            );
            tokio::select! {
                () = self.site.drain.cancelled() => return false,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    /// Puts the due ones on their lanes.
    fn wake_detours(&mut self) {
        if self.detours.is_empty() {
            return;
        }
        let now = Instant::now();
        let due = self
            .detours
            .iter_mut()
            .filter(|(_, due)| due.is_some_and(|due| due <= now));
        let due: Vec<Box<[u8]>> = due.map(|(key, due)| (*due = None, key.clone()).1).collect();
        for key in due {
            self.lanes.push(self.detour_lane(&key), Item::Detoured(key));
        }
    }

    /// Whether the aggregate of this key waits in the detour.
    fn is_detoured(&self, key: Option<&[u8]>) -> bool {
        is_detoured(&self.detours, key)
    }

    /// Writes what was handled last into the watermark, which else the next record does: a lock less.
    fn tell_handled(&mut self) {
        if self.handled.is_some() {
            self.note(|_| ());
        }
    }

    /// Writes into the watermark, and knows how much there is to it.
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

/// Whether the aggregate of this key waits in the detour.
fn is_detoured(detours: &HashMap<Box<[u8]>, Option<Instant>>, key: Option<&[u8]>) -> bool {
    !detours.is_empty() && key.is_some_and(|key| detours.contains_key(key))
}
