//! Acknowledged and in-flight records of a producer, one bit per record.
//!
//! The poll thread marks records and the sender queries them. [`AckState`] contains the decisions
//! and is independent of threads and of Kafka.

use std::{
    collections::VecDeque,
    sync::{Mutex, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::Notify;

/// The acknowledged tags and the records in flight. Bounded by the sender's window.
#[derive(Default)]
pub(crate) struct Acks {
    state: Mutex<AckState>,
    /// Notified when the lowest unacknowledged tag has moved far enough, when everything is
    /// acknowledged, and on failure.
    changed: Notify,
    watcher: OnceLock<Box<dyn Fn(Duration) + Send + Sync>>,
}

/// A limit on the records in flight.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Window {
    pub(crate) records: u64,
    /// Bytes of keys, values and headers.
    pub(crate) bytes: usize,
}

/// Reason why a producer cannot continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A new producer may succeed.
    Broken(String),
    /// Another producer with the same transactional id has started, so another relay is now the
    /// leader.
    Fenced,
    /// The broker refuses a batch, whichever producer sends it. [`Acks::refused`] returns its
    /// records.
    Refused(String),
    /// The broker refuses the timestamps of this topic's records, because a clock is wrong.
    Untimely(String),
}

/// Maximum number of refused records that are kept. Enough for librdkafka's largest batches of a
/// few partitions.
const REFUSED_MAX: usize = 100_000;

#[derive(Default)]
struct AckState {
    /// All tags below are acknowledged.
    floor: u64,
    /// The next tag to be sent.
    next: u64,
    /// Bit `n` of the ring is set if tag `(floor rounded down to 64) + n` is acknowledged.
    words: VecDeque<u64>,
    /// Bytes and labels of the records, starting with `floor`.
    sizes: VecDeque<(u32, i64)>,
    bytes: usize,
    /// The waiter is woken once no more than this is in flight.
    wake_below: Window,
    /// The tag whose acknowledgement is being timed, and the start time.
    timed: Option<(u64, i64)>,
    failure: Option<Failure>,
    refused: Refused,
    topic_fault: Option<(String, String)>,
    /// Number of records with a delivery report.
    reports: u64,
    unreachable: Option<String>,
}

/// The records of refused batches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) records: Vec<RefusedRecord>,
    pub(crate) grounds: Vec<Ground>,
}

/// A record of a refused batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RefusedRecord {
    /// The caller's label of the record.
    pub(crate) label: i64,
    /// Bytes of key, value and headers.
    pub(crate) bytes: usize,
    /// Index into [`Refused::grounds`].
    pub(crate) ground: usize,
}

/// Reason why a topic refuses records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ground {
    pub(crate) topic: String,
    /// The batch, or one of its records, is larger than the topic allows.
    pub(crate) too_large: bool,
    pub(crate) reason: String,
}

impl Acks {
    fn locked(&self) -> std::sync::MutexGuard<'_, AckState> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Counts a record as in flight and returns its tag, or `None` if the window is full. Call it
    /// directly before the record is sent. `label` identifies the record if it is refused.
    pub(crate) fn admit(&self, label: i64, bytes: usize, window: Window) -> Option<u64> {
        let mut state = self.locked();
        let under_way = state.next - state.floor;
        // A record larger than the window is sent alone.
        if under_way > 0 && (under_way >= window.records || state.bytes + bytes > window.bytes) {
            return None;
        }
        let tag = state.next;
        state.next += 1;
        state.bytes += bytes;
        state
            .sizes
            .push_back((u32::try_from(bytes).unwrap_or(u32::MAX), label));
        if state.words.len() * 64 <= (tag - (state.floor & !63)) as usize {
            state.words.push_back(0);
        }
        Some(tag)
    }

    /// Takes back the last tag because its record was not sent.
    pub(crate) fn retract(&self, tag: u64) {
        let mut state = self.locked();
        if state.next == tag + 1 && state.next > state.floor {
            state.next = tag;
            let (size, _) = state.sizes.pop_back().unwrap_or_default();
            state.bytes = state.bytes.saturating_sub(size as usize);
        }
    }

    /// Passes the time from `since` (microseconds since the Unix epoch) to the acknowledgement of
    /// `tag` to the watcher. Does nothing if another tag is being timed or `tag` is already
    /// acknowledged.
    pub(crate) fn time(&self, tag: u64, since: i64) {
        let mut state = self.locked();
        if state.timed.is_none() && tag >= state.floor {
            state.timed = Some((tag, since));
        }
    }

    /// Sets the watcher that receives the measured times. Only the first call has an effect.
    pub(crate) fn watch(&self, watcher: impl Fn(Duration) + Send + Sync + 'static) {
        let _ = self.watcher.set(Box::new(watcher));
    }

    /// Returns the lowest unacknowledged tag. All tags below it are acknowledged.
    pub(crate) fn floor(&self) -> u64 {
        self.locked().floor
    }

    /// Returns the number of records sent so far, which is the next tag.
    pub(crate) fn sent(&self) -> u64 {
        self.locked().next
    }

    /// Returns the records and bytes in flight.
    pub(crate) fn under_way(&self) -> (u64, usize) {
        let state = self.locked();
        (state.next - state.floor, state.bytes)
    }

    /// Waits until no more than `below` is in flight, or the producer has failed. Earlier
    /// acknowledgements do not wake the caller, so that a sender with a full window refills it by
    /// halves rather than record by record.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn settle(&self, below: Window) {
        loop {
            let mut notified = std::pin::pin!(self.changed.notified());
            // Registered before the state is read, so that a wake-up in between is not missed.
            notified.as_mut().enable();
            {
                let mut state = self.locked();
                if state.is_below(below) || state.failure.is_some() {
                    return;
                }
                state.wake_below = below;
            }
            notified.await;
        }
    }

    /// Returns why the producer cannot continue, once it has failed.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.locked().failure.clone()
    }

    /// Returns why Kafka is unreachable. An acknowledgement clears the reason.
    pub(crate) fn unreachable_since_last_ack(&self) -> Option<String> {
        self.locked().unreachable.clone()
    }

    pub(super) fn mark(&self, tag: u64) {
        let (wake, since) = {
            let mut state = self.locked();
            let since = state
                .timed
                .take_if(|(timed, _)| *timed == tag)
                .map(|(_, since)| since);
            (state.mark(tag), since)
        };
        if wake {
            self.changed.notify_waiters();
        }
        if let (Some(since), Some(watcher)) = (since, self.watcher.get()) {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            watcher(now.saturating_sub(Duration::from_micros(since.try_into().unwrap_or(0))));
        }
    }

    /// Returns the records of batches that the broker refused. Complete once the producer has
    /// reported on all of their records.
    pub(crate) fn refused(&self) -> Refused {
        self.locked().refused.clone()
    }

    /// Returns the number of records with a delivery report, whether delivered or not.
    pub(crate) fn reports(&self) -> u64 {
        self.locked().reports
    }

    /// Fails the producer because a topic accepts no records, although the records are valid.
    pub(super) fn fail_for_topic(&self, topic: &str, reason: String) {
        self.locked()
            .topic_fault
            .get_or_insert_with(|| (topic.to_owned(), reason.clone()));
        self.fail(Failure::Broken(reason));
    }

    /// Returns the topic for which the producer failed, and the reason.
    pub(crate) fn topic_fault(&self) -> Option<(String, String)> {
        self.locked().topic_fault.clone()
    }

    /// Fails the producer. The first reason is kept.
    pub(crate) fn fail(&self, failure: Failure) {
        self.locked().failure.get_or_insert(failure);
        self.changed.notify_waiters();
    }

    /// Registers a record of a batch that the broker refuses. Replaces a [`Failure::Broken`],
    /// because the refusal is the cause of other errors that occur with it.
    pub(super) fn refuse(&self, tag: u64, ground: Ground) {
        self.locked().refuse(tag, ground);
        self.changed.notify_waiters();
    }

    /// Fails the producer because the broker refuses the timestamps of this topic's records, which
    /// are valid. Replaces any failure except [`Failure::Fenced`], because the refusal is the cause
    /// of other errors.
    pub(super) fn refuse_timestamps(&self, topic: &str) {
        let mut state = self.locked();
        if !matches!(state.failure, Some(Failure::Fenced)) {
            state.failure = Some(Failure::Untimely(topic.to_owned()));
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Registers that the cluster has responded to a request.
    pub(super) fn reachable(&self) {
        self.locked().reachable();
    }

    pub(super) fn unreachable(&self, reason: &str) {
        let mut state = self.locked();
        if state.unreachable.is_none() {
            tracing::warn!(reason, "kafka is not reachable; events wait in the outbox");
        }
        state.unreachable = Some(reason.to_owned());
    }
}

impl AckState {
    /// Marks one tag. Returns `true` if the waiter must be woken.
    fn mark(&mut self, tag: u64) -> bool {
        self.reports += 1;
        if tag < self.floor {
            return false;
        }
        let at = (tag - (self.floor & !63)) as usize;
        if let Some(word) = self.words.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
        let size = self
            .sizes
            .get((tag - self.floor) as usize)
            .map_or(0, |(size, _)| *size as usize);
        self.bytes = self.bytes.saturating_sub(size);
        self.reachable();
        if tag != self.floor {
            return false;
        }
        self.advance();
        self.is_below(self.wake_below)
    }

    fn refuse(&mut self, tag: u64, ground: Ground) {
        self.reports += 1;
        if matches!(self.failure, None | Some(Failure::Broken(_))) {
            self.failure = Some(Failure::Refused(ground.reason.clone()));
        }
        let record = tag
            .checked_sub(self.floor)
            .and_then(|at| self.sizes.get(at as usize));
        let Some((bytes, label)) = record.filter(|_| self.refused.records.len() < REFUSED_MAX)
        else {
            return;
        };
        let Refused { records, grounds } = &mut self.refused;
        let known = grounds.iter().position(|known| *known == ground);
        let ground = known.unwrap_or_else(|| {
            grounds.push(ground);
            grounds.len() - 1
        });
        records.push(RefusedRecord {
            label: *label,
            bytes: *bytes as usize,
            ground,
        });
    }

    fn reachable(&mut self) {
        if self.unreachable.take().is_some() {
            tracing::info!("kafka is reachable again");
        }
    }

    fn is_below(&self, window: Window) -> bool {
        self.next - self.floor <= window.records && self.bytes <= window.bytes
    }

    /// Moves the floor over the acknowledged prefix, one word at a time.
    fn advance(&mut self) {
        let before = self.floor;
        while let Some(&word) = self.words.front() {
            let offset = (self.floor % 64) as u32;
            let ones = (!(word >> offset)).trailing_zeros().min(64 - offset);
            self.floor += u64::from(ones);
            if offset + ones < 64 {
                break;
            }
            self.words.pop_front();
        }
        self.sizes.drain(..(self.floor - before) as usize);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_floor_is_the_lowest_tag_that_is_not_acknowledged(
            order in Just((0..300u64).collect::<Vec<_>>()).prop_shuffle(),
            sent_first in 1usize..300,
        ) {
            let acks = Acks::default();
            let (mut sent, mut done) = (0u64, BTreeSet::new());
            for chunk in order.chunks(sent_first) {
                // All tags up to the largest one of this chunk must be sent before the chunk is
                // acknowledged. A retracted tag leaves no trace.
                let retracted = acks
                    .admit(0, 7, Window { records: 1000, bytes: 1000 })
                    .expect("room");
                acks.retract(retracted);
                while sent <= *chunk.iter().max().expect("not empty") {
                    let tag = acks.admit(0, 1, Window { records: 1000, bytes: 1000 });
                    prop_assert_eq!(tag, Some(sent));
                    sent += 1;
                }
                for &tag in chunk {
                    acks.mark(tag);
                    done.insert(tag);
                    let lowest = (0..).find(|tag| !done.contains(tag)).expect("endless");
                    prop_assert_eq!(acks.floor(), lowest);
                }
                prop_assert_eq!(acks.under_way().1, (sent as usize) - done.len());
            }
        }
    }

    #[test]
    fn what_was_in_a_refused_batch_is_known_by_its_label_and_outranks_what_breaks_because_of_it() {
        let acks = Acks::default();
        let window = Window {
            records: 10,
            bytes: 10,
        };
        let tags: Vec<u64> = (0..3)
            .map(|n| acks.admit(100 + n, 1, window).expect("room"))
            .collect();
        acks.mark(tags[0]);
        acks.fail(Failure::Broken("fatal".into()));
        let ground = Ground {
            topic: "t".into(),
            too_large: true,
            reason: "too large".into(),
        };
        acks.refuse(tags[1], ground.clone());
        acks.refuse(tags[2], ground.clone());
        let record = |label| RefusedRecord {
            label,
            bytes: 1,
            ground: 0,
        };
        let refused = Refused {
            records: vec![record(101), record(102)],
            grounds: vec![ground.clone()],
        };
        assert_eq!((acks.refused(), acks.reports()), (refused, 3));
        assert_eq!(acks.failure(), Some(Failure::Refused("too large".into())));
        let fenced = Acks::default();
        fenced.admit(1, 1, window).expect("room");
        fenced.fail(Failure::Fenced);
        fenced.refuse(0, ground);
        assert_eq!(fenced.failure(), Some(Failure::Fenced));
    }
}
