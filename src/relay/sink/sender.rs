//! Sending of records within a window that limits the records in flight. Used by both kinds of
//! delivery.

use std::{future::Future, sync::Arc, time::Duration};

use crate::{
    kafka::{Acks, Producer, Record, SendError, Transactional, Window},
    relay::{RelayOptions, error::Interruption},
};

/// Delay before a retry if librdkafka's queue is smaller than the window.
const QUEUE_RETRY: Duration = Duration::from_millis(5);

/// Producers that take turns, and the window that they share. There is at least one.
pub(super) struct Sender {
    producers: Vec<Arc<Producer>>,
    turn: usize,
    acks: Arc<Acks>,
    window: Window,
    /// librdkafka had no room for the last record, although the window had.
    queue_is_full: bool,
    /// The tag after the last record, and the number of bytes sent so far.
    next: u64,
    bytes: u64,
}

/// Outcome of sending a record.
pub(crate) enum Sent {
    /// The record is in flight with this tag.
    Tag(u64),
    /// The window is full for a record of this many bytes. The caller waits for `room` and sends it
    /// again.
    Full(usize),
    /// The previous batches have not progressed far enough for the next one. The caller waits for
    /// `admitted` and sends the record again.
    Committing,
}

impl Sender {
    /// Opens one producer for each transactional id, or one without.
    pub(super) fn open(
        options: &RelayOptions,
        batch_bytes_max: usize,
        transactional: &[Transactional<'_>],
    ) -> Result<Self, Interruption> {
        let acks = Arc::<Acks>::default();
        let open = |id: Option<Transactional<'_>>| match Producer::open(
            &options.kafka,
            options.message_bytes_max,
            batch_bytes_max,
            id,
            acks.clone(),
        ) {
            Ok(producer) => Ok(Arc::new(producer)),
            Err(error) => Err(Interruption::Refused(format!(
                "the Kafka client cannot be created: {error}; see [kafka.properties]"
            ))),
        };
        let producers = match transactional {
            [] => vec![open(None)?],
            ids => ids
                .iter()
                .map(|id| open(Some(*id)))
                .collect::<Result<_, _>>()?,
        };
        let window = Window {
            records: options.in_flight_events_max as u64,
            bytes: options.in_flight_bytes_max,
        };
        Ok(Self {
            producers,
            turn: 0,
            acks,
            window,
            queue_is_full: false,
            next: 0,
            bytes: 0,
        })
    }

    /// Returns the producer whose turn it is.
    pub(super) fn producer(&self) -> &Arc<Producer> {
        &self.producers[self.turn]
    }

    pub(super) fn producers(&self) -> &[Arc<Producer>] {
        &self.producers
    }

    /// Returns the index of the producer whose turn it is.
    pub(super) fn turn(&self) -> usize {
        self.turn
    }

    /// Passes the turn to the next producer. All records of this producer must be acknowledged
    /// before the next record is sent: nothing else keeps the order across producers.
    pub(super) fn pass_on(&mut self) {
        self.turn = (self.turn + 1) % self.producers.len();
    }

    pub(super) fn acks(&self) -> &Arc<Acks> {
        &self.acks
    }

    /// Returns the tag after the last sent record.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Returns the number of bytes sent so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sends a record without waiting.
    ///
    /// # Errors
    ///
    /// Returns an error if the producer refuses the record for another reason than a full window.
    pub(super) fn send(
        &mut self,
        record: Record<'_>,
        header_bytes: usize,
    ) -> Result<Sent, SendError> {
        self.send_within(self.window, record, header_bytes)
    }

    /// Sends a record regardless of the window: for the record that ends a batch.
    pub(super) fn send_now(&mut self, record: Record<'_>) -> Result<Sent, SendError> {
        self.send_within(
            Window {
                records: u64::MAX,
                bytes: usize::MAX,
            },
            record,
            0,
        )
    }

    fn send_within(
        &mut self,
        window: Window,
        record: Record<'_>,
        header_bytes: usize,
    ) -> Result<Sent, SendError> {
        let bytes = record.key.len() + record.value.map_or(0, <[u8]>::len) + header_bytes;
        let Some(tag) = self.acks.admit(record.label, bytes, window) else {
            return Ok(Sent::Full(bytes));
        };
        let sent = self.producer().send(record, tag);
        self.queue_is_full = matches!(sent, Err(SendError::Full));
        match sent {
            Ok(()) => {
                self.next = tag + 1;
                self.bytes += bytes as u64;
                Ok(Sent::Tag(tag))
            }
            Err(SendError::Full) => {
                // The record is not in flight. A caller that drains before sending it again must
                // not wait for it.
                self.acks.retract(tag);
                Ok(Sent::Full(bytes))
            }
            Err(error) => {
                self.acks.retract(tag);
                Err(error)
            }
        }
    }

    /// Waits until half of the window is free and a record of `bytes` fits, or the producer has
    /// failed.
    pub(super) fn room(&self, bytes: usize) -> impl Future<Output = ()> + Send + use<> {
        // librdkafka's own queue may be full although the window is not, and it sends no
        // notification of free space.
        let retry = self.queue_is_full;
        let below = Window {
            records: self.window.records / 2,
            bytes: (self.window.bytes / 2).min(self.window.bytes.saturating_sub(bytes)),
        };
        let acks = self.acks.clone();
        async move {
            if retry {
                tokio::time::sleep(QUEUE_RETRY).await;
            }
            acks.settle(below).await;
        }
    }

    /// Waits until everything sent is acknowledged, or the producer has failed.
    pub(super) fn acknowledged(&self) -> impl Future<Output = ()> + Send + use<> {
        let acks = self.acks.clone();
        async move { acks.settle(Window::default()).await }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Headers;

    #[test]
    fn a_record_for_which_the_client_has_no_room_is_not_under_way() {
        let database = crate::postgres::DatabaseSettings::parse("postgres://localhost/none")
            .expect("an address");
        let kafka = crate::kafka::Settings {
            brokers: "127.0.0.1:1".into(),
            ..Default::default()
        };
        let options = RelayOptions {
            in_flight_events_max: 1_000_000,
            ..RelayOptions::new(database, kafka)
        };
        let mut sender = Sender::open(&options, 1_000_000, &[]).expect("a producer");
        let record = || Record {
            topic: "t",
            partition: 0,
            key: b"k",
            value: None,
            headers: Headers::with_capacity(0),
            timestamp: 0,
            label: 1,
        };
        while matches!(sender.send(record(), 0), Ok(Sent::Tag(_))) {}
        assert!(matches!(sender.send(record(), 0), Ok(Sent::Full(_))));
        assert_eq!(sender.acks().under_way().0, sender.next());
    }
}
