//! One partition: reads its feed, keeps its lanes, and knows what is finished.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::attempt::Runner;
use super::detour::Detour;
use super::lanes::Lanes;
use super::options::{Options, Order};
use super::unit::{Ended, Item, Unit};
use super::watermark::{Ticket, Watermark};
use crate::kafka::{Feed, Incoming, Malformed, Message};

/// How many records are read, or ended without a pause, before other tasks get their turn.
const SLICE: usize = 128;

/// How far a partition is: what its task tells the polling thread.
pub(super) struct Progress {
    watermark: Mutex<Watermark>,
    /// How many of its aggregates wait in the detour.
    pub(super) detoured: AtomicUsize,
}

impl Progress {
    pub(super) fn new(watermark: Watermark) -> Self {
        Self { watermark: Mutex::new(watermark), detoured: AtomicUsize::new(0) }
    }

    /// What is finished. Locked for nanoseconds.
    pub(super) fn watermark(&self) -> MutexGuard<'_, Watermark> {
        self.watermark.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything about one partition while this member has it.
pub(super) struct PartitionTask {
    feed: Feed,
    runner: Arc<Runner>,
    /// The type of records that do not say theirs.
    assumed_type: Option<&'static str>,
    progress: Arc<Progress>,
    lanes: Lanes<Item>,
    hasher: RandomState,
    running: JoinSet<Ended>,
    bytes: usize,
    drain: CancellationToken,
    detour: Option<Arc<Detour>>,
    /// Aggregates that wait in the detour, and when the oldest event of each is due; none while it is on its lane.
    detours: HashMap<Box<[u8]>, Option<Instant>>,
}

impl PartitionTask {
    pub(super) fn new(
        feed: Feed,
        runner: Arc<Runner>,
        detour: Option<Arc<Detour>>,
        assumed_type: Option<&'static str>,
        progress: Arc<Progress>,
        drain: CancellationToken,
    ) -> Self {
        Self {
            feed,
            runner,
            assumed_type,
            progress,
            lanes: Lanes::new(),
            hasher: RandomState::new(),
            running: JoinSet::new(),
            bytes: 0,
            drain,
            detour,
            detours: HashMap::new(),
        }
    }

    /// Handles records until the partition is given up; then waits for what runs.
    pub(super) async fn run(mut self) {
        if !self.recall_detours().await {
            return;
        }
        while !self.drain.is_cancelled() {
            self.wake_detours();
            while let Some(ended) = self.running.try_join_next() {
                self.end(ended.expect("handlers' panics are caught, and a unit has none of its own"));
            }
            let started = self.start_ready();
            let read = self.read();
            if started + read > 0 {
                tokio::task::yield_now().await;
            } else {
                self.wait().await;
            }
        }
        while let Some(ended) = self.running.join_next().await {
            self.end(ended.expect("handlers' panics are caught, and a unit has none of its own"));
        }
    }

    /// Waits until there is something to do.
    async fn wait(&mut self) {
        let (wants_permit, has_room) = (self.lanes.has_ready() && self.runner.gate.is_open(), self.has_room());
        let due = self.detours.values().flatten().min().copied();
        let permits = self.runner.permits.clone();
        tokio::select! {
            biased;
            () = self.drain.cancelled() => {}
            Some(ended) = self.running.join_next() => self.end(ended.expect("handlers' panics are caught, and a unit has none of its own")),
            permit = permits.acquire_owned(), if wants_permit => {
                if let Ok(permit) = permit {
                    self.start(permit);
                }
            }
            () = self.runner.gate.opened(), if !self.runner.gate.is_open() => {}
            () = self.feed.readable(), if has_room => {}
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
    }

    // === reading ===

    /// Reads what is here, up to a bound; how many records.
    fn read(&mut self) -> usize {
        for read in 0..SLICE {
            if !self.has_room() {
                return read;
            }
            let Some(record) = self.feed.next() else { return read };
            self.accept(record);
        }
        SLICE
    }

    fn has_room(&self) -> bool {
        let watermark = self.locked();
        watermark.unfinished() < self.runner.options.buffer && watermark.span() < Options::SPAN && self.bytes < Options::BUFFER_BYTES
    }

    fn accept(&mut self, record: Incoming) {
        let Some(ticket) = self.locked().add(record.offset) else { return };
        let lane = self.lane_of(record.key(), record.offset);
        let item = match Message::read(record, self.assumed_type) {
            Ok(message) if self.runner.core.router.route(message.event_type()).is_none() => return self.skip(ticket, message.event_type()),
            // A deletion on a compacted topic, by somebody who writes no headers.
            Err((Malformed::NoType, record)) if record.value().is_none() => return self.skip(ticket, ""),
            Ok(message) => Item::Event(ticket, Arc::new(message)),
            Err((malformed, record)) => Item::Malformed(ticket, record, malformed.to_string()),
        };
        self.bytes += item.size();
        self.lanes.push(lane, item);
    }

    fn skip(&mut self, ticket: Ticket, event_type: &str) {
        self.runner.statistics.unknown(event_type);
        self.locked().finish(ticket);
    }

    fn lane_of(&self, key: Option<&[u8]>, offset: i64) -> u64 {
        match (self.runner.options.order, key) {
            (Order::Partition, _) => 0,
            (Order::Aggregate, Some(key)) => self.hasher.hash_one(key),
            // An offset is one of a kind; mixed, since the map takes it as it is.
            (Order::Aggregate, None) | (Order::None, _) => self.hasher.hash_one(offset),
        }
    }

    // === starting and ending ===

    /// Starts what may start, as long as there are permits; how many units.
    fn start_ready(&mut self) -> usize {
        for started in 0..SLICE {
            if !self.lanes.has_ready() || !self.runner.gate.is_open() {
                return started;
            }
            let Ok(permit) = self.runner.permits.clone().try_acquire_owned() else { return started };
            self.start(permit);
        }
        SLICE
    }

    fn start(&mut self, permit: OwnedSemaphorePermit) {
        let max = self.runner.options.batch;
        // What goes behind its waiting aggregate goes one by one.
        let detoured = self.lanes.next().is_some_and(|next| self.is_detoured(next));
        let Some((lane, mut items)) = self.lanes.start(if detoured { 1 } else { max }, Item::goes_with) else { return };
        let mut lanes = vec![(lane, items.len())];
        // Other aggregates' events share the transaction, if it may hold more.
        while !detoured && items.len() < max && self.lanes.next().is_some_and(|next| items[0].goes_with(next) && !self.is_detoured(next)) {
            let Some((lane, more)) = self.lanes.start(max - items.len(), Item::goes_with) else { break };
            lanes.push((lane, more.len()));
            items.extend(more);
        }
        let unit = Unit {
            runner: self.runner.clone(),
            detour: self.detour.clone(),
            partition: self.feed.partition.clone(),
            assumed_type: self.assumed_type,
            drain: self.drain.clone(),
            lanes,
            detoured,
        };
        let mut unit: Pin<Box<dyn Future<Output = Ended> + Send>> = Box::pin(unit.run(items, permit));
        // A handler that does not wait is done here and now, without a task of its own. The waker may be blind: a task polls again at once.
        match unit.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ended) => self.end(ended),
            Poll::Pending => drop(self.running.spawn(unit)),
        }
    }

    fn end(&mut self, ended: Ended) {
        {
            let mut watermark = self.locked();
            ended.finished.iter().for_each(|ticket| watermark.finish(*ticket));
        }
        self.bytes = self.bytes.saturating_sub(ended.bytes);
        if !ended.parked.is_empty() || ended.rejoined.is_some() {
            self.detours.extend(ended.parked.into_iter().map(|(key, after)| (key, Some(Instant::now() + after))));
            if let Some(key) = ended.rejoined {
                self.detours.remove(&key);
            }
            self.progress.detoured.store(self.detours.len(), Ordering::Relaxed);
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
        let Some(detour) = self.detour.clone() else { return true };
        loop {
            let error = match detour.keys(&self.feed.partition).await {
                Ok(keys) => {
                    let now = Instant::now();
                    self.detours = keys.into_iter().map(|(key, after)| (key.into(), Some(now + after))).collect();
                    self.progress.detoured.store(self.detours.len(), Ordering::Relaxed);
                    return true;
                }
                Err(error) => error,
            };
            tracing::warn!(subscriber = self.runner.name, topic = &*self.feed.partition.topic, %error, "which aggregates wait is not known yet");
            tokio::select! {
                () = self.drain.cancelled() => return false,
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
        for (key, due) in &mut self.detours {
            if due.is_some_and(|due| due <= now) {
                *due = None;
                self.lanes.push(self.hasher.hash_one(&**key), Item::Detoured(key.clone()));
            }
        }
    }

    fn is_detoured(&self, item: &Item) -> bool {
        !self.detours.is_empty() && item.key().is_some_and(|key| self.detours.contains_key(key))
    }

    fn locked(&self) -> MutexGuard<'_, Watermark> {
        self.progress.watermark()
    }
}
