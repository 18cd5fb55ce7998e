//! Idempotent producing without transactions: what was in flight when the relay died is sent again.

use std::{future::Future, sync::Arc, time::Duration};

use crate::{
    kafka::{Acks, Failure, Producer, Record, SendError, Window},
    relay::{RelayOptions, error::Interruption},
};

/// How long to wait for librdkafka's queue when it is smaller than the window.
const QUEUE_RETRY: Duration = Duration::from_millis(5);

/// The sink for delivery at least once.
pub(crate) struct AtLeastOnce {
    producer: Producer,
    window: Window,
    /// A tag that was given for a record which librdkafka then had no room for: the next record is that one again.
    reserved: Option<u64>,
}

/// What became of a record.
pub(crate) enum Sent {
    /// Under way under this tag.
    Tag(u64),
    /// The window is full for a record of this many bytes: wait for `room`, then send it again.
    Full(usize),
}

impl AtLeastOnce {
    /// A sink with a producer of its own.
    ///
    /// # Errors
    /// A property that librdkafka refuses.
    pub(crate) fn open(options: &RelayOptions) -> Result<Self, Interruption> {
        let producer = Producer::open(&options.kafka, options.message_bytes_max)
            .map_err(|error| Interruption::Refused(format!("the Kafka client cannot be made: {error}; see [kafka.properties]")))?;
        let window = Window { records: options.in_flight_events_max as u64, bytes: options.in_flight_bytes_max };
        Ok(Self { producer, window, reserved: None })
    }

    pub(crate) fn producer(&self) -> &Producer {
        &self.producer
    }

    pub(crate) fn acks(&self) -> &Arc<Acks> {
        self.producer.acks()
    }

    /// Sends a record; never waits.
    ///
    /// # Errors
    /// When the producer refuses it for another reason than a full window.
    pub(crate) fn send(&mut self, record: Record<'_>, header_bytes: usize) -> Result<Sent, SendError> {
        let bytes = record.key.len() + record.value.map_or(0, <[u8]>::len) + header_bytes;
        let Some(tag) = self.reserved.take().or_else(|| self.producer.acks().admit(bytes, self.window)) else {
            return Ok(Sent::Full(bytes));
        };
        match self.producer.send(record, tag) {
            Ok(()) => Ok(Sent::Tag(tag)),
            Err(SendError::Full) => {
                self.reserved = Some(tag);
                Ok(Sent::Full(bytes))
            }
            Err(error) => {
                self.acks().retract(tag);
                Err(error)
            }
        }
    }

    /// Waits until half of the window is free and a record of `bytes` fits, or the producer failed.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) fn room(&self, bytes: usize) -> impl Future<Output = ()> + Send + use<> {
        // librdkafka's own queue may be full although the window is not: it has nobody to wake us.
        let retry = self.reserved.is_some();
        let below =
            Window { records: self.window.records / 2, bytes: (self.window.bytes / 2).min(self.window.bytes.saturating_sub(bytes)) };
        let acks = self.acks().clone();
        async move {
            if retry {
                tokio::time::sleep(QUEUE_RETRY).await;
            }
            acks.settle(below).await;
        }
    }

    /// Waits until everything sent is durable, or the producer failed.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) fn drained(&self) -> impl Future<Output = ()> + Send + use<> {
        let acks = self.acks().clone();
        async move { acks.settle(Window::default()).await }
    }

    /// Why the producer can go no further, once it cannot.
    pub(crate) fn failure(&self) -> Option<Interruption> {
        self.acks().failure().map(|failure| match failure {
            Failure::Broken(reason) => Interruption::Kafka(reason),
            Failure::Refused(reason) => Interruption::Refused(format!("{reason}; the relay stops, so that nothing is skipped")),
        })
    }

    /// Below this tag everything is durable.
    pub(crate) fn durable(&self) -> u64 {
        self.acks().floor()
    }
}
