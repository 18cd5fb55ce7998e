//! Parts of partitions, read to ends that were measured before.
//!
//! librdkafka reports the end of a partition only when no more records are available. A partition
//! that is written to without pause may never reach that state. Therefore a partition ends at the
//! first offset that is not before its measured end. The report is needed too: transaction markers,
//! aborted and compacted records occupy offsets, so there may be no record up to the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message as _, Offset, TopicPartitionList};

use crate::kafka::{
    Beat, ConsumerError, Incoming, Partition, consumer::is_denied, feed::incoming,
    incoming::Buffers, silent_context::Quiet,
};

/// Time for which one poll waits.
pub(super) const POLL: Duration = Duration::from_millis(100);

/// A part of a partition to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) partition: Partition,
    pub(crate) from: i64,
    /// Everything before this offset is read.
    pub(crate) to: i64,
}

/// Result of one poll.
pub(super) enum Polled<'c> {
    /// A record before the end of its part.
    Record(BorrowedMessage<'c>),
    /// No record has arrived within [`POLL`], or only records after the end.
    Nothing,
    /// All parts were read to their ends.
    End,
}

/// Parts of partitions that are read to their ends, one topic after another.
pub(super) struct BoundedRead<'c> {
    consumer: &'c BaseConsumer<Quiet>,
    /// The topics after the present one.
    waiting: BTreeMap<Arc<str>, Vec<Part>>,
    topic: Arc<str>,
    open: Open,
    /// Maximum time without a record.
    silence_max: Duration,
    heard: Instant,
}

impl<'c> BoundedRead<'c> {
    /// Reads the parts with the first [`poll`](Self::poll). The consumer must report the ends of
    /// partitions.
    ///
    /// One consumer reads one topic at a time, because librdkafka reports the end of a partition
    /// without its topic.
    pub(super) fn new(
        consumer: &'c BaseConsumer<Quiet>,
        parts: impl IntoIterator<Item = Part>,
        silence_max: Duration,
    ) -> Self {
        let mut waiting: BTreeMap<Arc<str>, Vec<Part>> = BTreeMap::new();
        for part in parts {
            let topic = part.partition.topic.clone();
            waiting.entry(topic).or_default().push(part);
        }
        Self {
            consumer,
            waiting,
            topic: "".into(),
            open: Open::default(),
            silence_max,
            heard: Instant::now(),
        }
    }

    /// Starts the next topic if the present one was read. Leaves nothing open if there is none.
    fn start_topic(&mut self) -> Result<(), KafkaError> {
        while self.open.0.is_empty()
            && let Some((topic, parts)) = self.waiting.pop_first()
        {
            let mut list = TopicPartitionList::new();
            for Part {
                partition,
                from,
                to,
            } in parts
            {
                if self.open.add(partition.number, from, to) {
                    list.add_partition_offset(&topic, partition.number, Offset::Offset(from))?;
                }
            }
            (self.topic, self.heard) = (topic, Instant::now());
            self.consumer.assign(&list)?;
        }
        Ok(())
    }

    /// Waits for the next record. Returns `None` once all parts were read to their ends.
    ///
    /// # Errors
    ///
    /// See [`poll`](Self::poll).
    pub(super) fn next(
        &mut self,
        beat: &Beat,
    ) -> Result<Option<BorrowedMessage<'c>>, ConsumerError> {
        loop {
            match self.poll(beat)? {
                Polled::Record(record) => return Ok(Some(record)),
                Polled::Nothing => {}
                Polled::End => return Ok(None),
            }
        }
    }

    /// Waits for up to [`POLL`] for a record.
    ///
    /// # Errors
    ///
    /// Returns an error if the topic may not be read, which librdkafka reports only once. Returns
    /// other errors, or [`KafkaError::NoMessageReceived`], only after the maximum silence.
    pub(super) fn poll(&mut self, beat: &Beat) -> Result<Polled<'c>, ConsumerError> {
        beat.touch();
        let polled = self.start_topic().and_then(|()| self.poll_topic());
        polled.map_err(|error| self.failed(error))
    }

    fn poll_topic(&mut self) -> Result<Polled<'c>, KafkaError> {
        if self.open.0.is_empty() {
            return Ok(Polled::End);
        }
        let error = match self.consumer.poll(POLL) {
            Some(Ok(record)) => match self.open.pass(record.partition(), record.offset()) {
                Pass::Wanted => {
                    self.heard = Instant::now();
                    return Ok(Polled::Record(record));
                }
                Pass::Last => {
                    self.heard = Instant::now();
                    return Ok(Polled::Nothing);
                }
                Pass::Unwanted => KafkaError::NoMessageReceived,
            },
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                self.heard = Instant::now();
                self.finish(partition);
                return Ok(Polled::Nothing);
            }
            Some(Err(error)) if is_denied(&error) => return Err(error),
            Some(Err(error)) => error,
            None => KafkaError::NoMessageReceived,
        };
        match self.heard.elapsed() > self.silence_max {
            true => Err(error),
            false => Ok(Polled::Nothing),
        }
    }

    /// Ends a partition of the present topic before its end.
    pub(super) fn finish(&mut self, partition: i32) {
        self.open.0.remove(&partition);
    }

    /// Returns the partition of a record that was just read.
    pub(super) fn partition(&self, record: &BorrowedMessage<'_>) -> Partition {
        Partition {
            topic: self.topic.clone(),
            number: record.partition(),
        }
    }

    /// Copies a record that was just read into the buffers.
    pub(super) fn incoming(&self, buffers: Buffers, record: &BorrowedMessage<'_>) -> Incoming {
        incoming(buffers, self.topic.clone(), record)
    }

    fn failed(&self, error: KafkaError) -> ConsumerError {
        ConsumerError::Reading {
            topic: self.topic.to_string(),
            error,
        }
    }
}

/// Partitions that are not at their ends, with these ends.
#[derive(Debug, Default)]
struct Open(BTreeMap<i32, i64>);

/// A record, compared with the end of its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// It is before the end.
    Wanted,
    /// It is not before the end, and ends the partition.
    Last,
    /// The partition has ended.
    Unwanted,
}

impl Open {
    /// Adds a partition. Returns `false` if nothing is before its end. A first offset behind the
    /// end belongs to a deleted topic, and the client starts where its settings prescribe.
    fn add(&mut self, partition: i32, from: i64, end: i64) -> bool {
        let is_open = end > 0 && from != end;
        is_open && self.0.insert(partition, end).is_none()
    }

    /// Passes a record.
    fn pass(&mut self, partition: i32, offset: i64) -> Pass {
        let Some(end) = self.0.get(&partition).copied() else {
            return Pass::Unwanted;
        };
        if offset + 1 >= end {
            self.0.remove(&partition);
        }
        match offset < end {
            true => Pass::Wanted,
            false => Pass::Last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_ends_at_its_measured_end_although_later_records_follow() {
        let mut open = Open::default();
        assert!(open.add(0, 3, 5) && open.add(1, 0, 4));
        assert_eq!(open.pass(0, 3), Pass::Wanted);
        assert_eq!(open.pass(0, 4), Pass::Wanted);
        assert_eq!(open.pass(0, 5), Pass::Unwanted);
        // The last records before the end were not visible, for example because they are markers.
        assert_eq!(open.pass(1, 0), Pass::Wanted);
        assert_eq!(open.pass(1, 6), Pass::Last);
        assert_eq!(open.pass(1, 7), Pass::Unwanted);
        assert!(open.0.is_empty());
    }

    #[test]
    fn a_partition_without_records_before_its_end_is_not_read() {
        let mut open = Open::default();
        assert!(!open.add(0, 5, 5) && !open.add(1, 0, 0));
        assert!(open.0.is_empty());
        // The topic was created again.
        assert!(open.add(0, 9, 5));
        assert_eq!(open.pass(0, 0), Pass::Wanted);
    }
}
