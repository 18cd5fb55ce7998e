//! Records of one partition that a group member reads.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use rdkafka::{
    Message as _, Timestamp,
    consumer::base_consumer::PartitionQueue,
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers as _},
};
use tokio::sync::Notify;

use super::{
    Partition,
    incoming::{Buffers, Incoming, Place},
    member_context::{Change, Changes, MemberContext},
    topic_ids::TopicWatch,
};

/// Placeholder for an unknown offset.
const UNKNOWN: i64 = -1;

/// The records of one partition.
pub(crate) struct Feed {
    pub(crate) partition: Partition,
    queue: PartitionQueue<MemberContext>,
    readable: Arc<Notify>,
    changes: Arc<Changes>,
    /// The topic that these records belong to. The feed ends when it is created again, because the
    /// client would continue at the offset of the deleted topic.
    pub(crate) topic: TopicWatch,
    /// The offset after the last record that was read.
    next: AtomicI64,
}

impl Feed {
    pub(super) fn new(
        partition: Partition,
        mut queue: PartitionQueue<MemberContext>,
        changes: Arc<Changes>,
        topic: TopicWatch,
    ) -> Self {
        let readable = Arc::new(Notify::new());
        let waker = readable.clone();
        queue.set_nonempty_callback(move || waker.notify_one());
        // Wakes the reader for records that arrived before the callback was set.
        readable.notify_one();
        Self {
            partition,
            queue,
            readable,
            changes,
            topic,
            next: AtomicI64::new(UNKNOWN),
        }
    }

    /// Returns the next record if one is available, copied into the buffers. Returns `None` for
    /// ever once the topic was created again.
    pub(crate) fn next(&self, buffers: impl FnOnce() -> Buffers) -> Option<Incoming> {
        loop {
            match self.queue.poll(Duration::ZERO)? {
                // Checked after the record was fetched: the client learns the id before it
                // requests records of the new topic.
                Ok(_) if self.topic.is_replaced() => return None,
                Ok(message) => {
                    self.next.store(message.offset() + 1, Ordering::Relaxed);
                    return Some(incoming(buffers(), self.partition.topic.clone(), &message));
                }
                Err(error)
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) =>
                {
                    let next =
                        Some(self.next.load(Ordering::Relaxed)).filter(|next| *next != UNKNOWN);
                    self.changes.push(Change::OutOfRange {
                        partition: self.partition.clone(),
                        next,
                    });
                }
                Err(error) => self.queue_complains(&error),
            }
        }
    }

    /// Waits until a record may be available. Call it after [`next`](Self::next) has returned
    /// `None`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn readable(&self) {
        self.readable.notified().await;
    }

    fn queue_complains(&self, error: &KafkaError) {
        tracing::warn!(
            topic = &*self.partition.topic,
            partition = self.partition.number,
            %error,
            "kafka consumer"
        );
    }
}

/// Maximum number of header names that are not UTF-8 and are skipped. Each counts twice, because
/// the headers are iterated twice, and each costs a caught panic with its message on stderr. A
/// record with more of them is not an event.
const UNREADABLE_HEADERS_MAX: u32 = 8;

/// Converts a message into a record of `topic`.
pub(super) fn incoming(
    buffers: Buffers,
    topic: Arc<str>,
    message: &BorrowedMessage<'_>,
) -> Incoming {
    let place = Place {
        topic,
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis().unwrap_or(-1),
    };
    let headers = message.headers();
    let unreadable = Cell::new(0);
    let read = (0..headers.map_or(0, |headers| headers.count())).filter_map(|at| {
        if unreadable.get() > UNREADABLE_HEADERS_MAX {
            return None;
        }
        // `get` panics if the name is not UTF-8, which brokers accept. No handler can request such
        // a header, so the record is read without it.
        let header = catch_unwind(AssertUnwindSafe(|| headers.map(|headers| headers.get(at))));
        let header = header
            .inspect_err(|_| unreadable.set(unreadable.get() + 1))
            .ok()??;
        Some((header.key, header.value))
    });
    let mut incoming = Incoming::within(buffers, place, message.key(), message.payload(), read);
    incoming.lacks_headers = unreadable.get() > UNREADABLE_HEADERS_MAX;
    incoming.is_stamped_by_broker = matches!(message.timestamp(), Timestamp::LogAppendTime(_));
    incoming
}
