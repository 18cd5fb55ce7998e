//! Handling of undeliverable events: parked, sent to the dead letter topic, or a reason to stop.

use uuid::Uuid;

use super::{
    Attempt, Delivery, ENVELOPE_BYTES, EventPublisher, Published, Unsent,
    backpressure::Backpressure, number,
};
use crate::{
    kafka::{Outgoing, Record, SendError, Value, partition_of},
    relay::{
        OnUndeliverable, RelayOptions,
        error::Interruption,
        parked::{
            dead_letter::{dead_letter_topic, explain, reference},
            set::{Aggregate, Full, Reference},
        },
        row::native::Row,
        sink::Sent,
    },
};

/// A dead letter is only a reference after this number of refusals. The first refusal is that of
/// the event's own topic.
const DEAD_LETTER_REFERENCE: u32 = 2;

/// After this number of refusals the relay stops, because the dead letter topic refuses even
/// references.
const DEAD_LETTER_REFUSALS_MAX: u32 = 4;

impl EventPublisher {
    /// Applies the policy to an undeliverable event that the broker has refused `refusals` times.
    pub(super) fn undeliverable(
        &mut self,
        seq: i64,
        event: &Outgoing<'_>,
        reason: String,
        refusals: u32,
        queues: bool,
    ) -> Result<Delivery, Unsent> {
        match self.options.undeliverable.policy {
            OnUndeliverable::Park => Ok(Delivery::Undeliverable(reason)),
            OnUndeliverable::DeadLetter if refusals < DEAD_LETTER_REFUSALS_MAX => self
                .send_dead_letter(
                    seq,
                    event,
                    &reason,
                    refusals >= DEAD_LETTER_REFERENCE,
                    queues,
                ),
            OnUndeliverable::DeadLetter | OnUndeliverable::Stop => {
                Err(Interruption::Refused(stop_message(&self.options, seq, event, &reason)).into())
            }
        }
    }

    /// Parks an event that is undeliverable for this reason, or that waits behind an undeliverable
    /// one.
    pub(super) fn park(
        &mut self,
        seq: i64,
        event: &Outgoing<'_>,
        reason: Option<String>,
    ) -> Result<Published, Unsent> {
        if !self.parked.has_room() {
            return Err(Backpressure::Parking.into());
        }
        let topic = self.routes.topic_of(event);
        let aggregate = Aggregate {
            kind: event.aggregate_type.to_owned(),
            id: event.aggregate_id.to_owned(),
        };
        if let Some(reason) = &reason {
            tracing::error!(
                event = %event.id, seq, topic,
                aggregate = format!("{}/{}", aggregate.kind, aggregate.id),
                "an event cannot be delivered: {reason}; it is parked, later events of its \
                 aggregate wait behind it, and others continue (tidings parked list --name {})",
                self.options.name
            );
            self.observer.undeliverable("parked");
        }
        match self.parked.park(Reference {
            seq,
            id: event.id,
            aggregate,
            topic,
            reason,
            waits_for: None,
        }) {
            Ok(()) => {
                self.isolation.set_aside(seq);
                Ok(Published::Parked)
            }
            Err(Full(limit)) => Ok(Published::NoRoomToPark(limit)),
        }
    }

    /// Parks an event until its topic is usable. If the events of the table cannot be parked, or if
    /// the policy is to stop, the relay waits for the topic for up to `topics.give_up_after`.
    pub(super) fn wait_for_topic(
        &mut self,
        row: &Row<'_>,
        topic: String,
    ) -> Result<Published, Unsent> {
        let event = &row.event;
        let policy = self.options.undeliverable.policy;
        let reason = self
            .lookup
            .faults
            .reason(&topic)
            .unwrap_or_default()
            .to_owned();
        if self.options.debezium.is_none() && policy != OnUndeliverable::Stop {
            if !self.parked.has_room() {
                return Err(Backpressure::Parking.into());
            }
            let aggregate = Aggregate {
                kind: event.aggregate_type.to_owned(),
                id: event.aggregate_id.to_owned(),
            };
            let (goes_to, waits_for) = (topic.clone(), Some(topic.clone()));
            let event = Reference {
                seq: row.seq,
                id: event.id,
                aggregate,
                topic: goes_to,
                reason: Some(reason),
                waits_for,
            };
            self.parked.wait_for_topic(event, &topic);
            self.isolation.set_aside(row.seq);
            return Ok(Published::Parked);
        }
        if !self.lookup.faults.is_overdue(&topic) {
            return Err(Backpressure::UnusableTopic(topic).into());
        }
        let seq = number(row.seq, event);
        match self.undeliverable(seq, event, reason.clone(), 0, true)? {
            Delivery::Sent(tag) => Ok(Published::Sent(tag)),
            Delivery::TopicWaits(dead) if !self.lookup.faults.is_overdue(&dead) => {
                Err(Backpressure::UnusableTopic(dead).into())
            }
            Delivery::TopicWaits(_) | Delivery::Undeliverable(_) => {
                Err(Interruption::Refused(stop_message(&self.options, seq, event, &reason)).into())
            }
        }
    }

    /// Decides about an event whose dead letter topic was not looked up yet or is unusable.
    fn dead_letter_waits(
        &mut self,
        topic: String,
        reason: &str,
        queues: bool,
    ) -> Result<Delivery, Unsent> {
        Ok(match self.unmet(topic, queues)? {
            Attempt::Impossible(why) => Delivery::Undeliverable(format!("{reason}; {why}")),
            Attempt::TopicWaits(topic) => Delivery::TopicWaits(topic),
            Attempt::Sent(tag) => Delivery::Sent(tag),
        })
    }

    /// Returns the event's own topic and the topic of its dead letter.
    fn dead_letter_topics(&mut self, event: &Outgoing<'_>) -> (String, String) {
        let original = self.routes.topic_of(event);
        let topic = dead_letter_topic(&self.options.undeliverable.dead_letter_topic, &original);
        (original, topic)
    }

    /// Records that an event was sent to the dead letter topic.
    fn dead_letter_sent(&mut self, (seq, id): (i64, Uuid), topic: &str, reason: &str, tag: u64) {
        tracing::warn!(
            event = %id, seq = (seq > 0).then_some(seq), topic,
            "an event cannot be delivered: {reason}; it is sent to the dead letters"
        );
        self.isolation.sent(seq, tag);
        self.isolation.set_aside(seq);
        self.observer.undeliverable("dead-letter");
    }

    /// Sends an event to the dead letter topic, or a reference to it if Kafka does not accept its
    /// payload.
    fn send_dead_letter(
        &mut self,
        seq: i64,
        event: &Outgoing<'_>,
        reason: &str,
        by_reference: bool,
        queues: bool,
    ) -> Result<Delivery, Unsent> {
        let (original, topic) = self.dead_letter_topics(event);
        if self.routes.named(&topic).is_none()
            || (queues && self.lookup.faults.reason(&topic).is_some())
        {
            return self.dead_letter_waits(topic, reason, queues);
        }
        let Some((at, route)) = self.routes.named(&topic) else {
            return Err(Backpressure::NewTopic(topic).into());
        };
        let partition = partition_of(event.aggregate_id.as_bytes(), route.partitions);
        let turn = self.sink.turn();
        if !route.may_send(partition, turn, || self.sink.acks().floor()) {
            return Err(Backpressure::FirstContact.into());
        }
        let (known, mut reference_only) = ((seq > 0).then_some(seq), by_reference);
        loop {
            let value = reference(self.options.table(), event.id, known);
            let mut event = *event;
            if reference_only {
                event.value = Value::Json(&value);
            }
            let (headers, value) = match self.envelope.write(&event) {
                Ok(written) => written,
                Err(_) => {
                    // The headers are not a JSON object. The reason states this, and the outbox
                    // keeps them.
                    event.headers = "{}";
                    self.envelope
                        .write(&event)
                        .map_err(|error| Interruption::Refused(error.to_string()))?
                }
            };
            let headers = explain(headers, &original, reason, event.id, known);
            let record = Record {
                topic: &topic,
                partition,
                key: event.aggregate_id.as_bytes(),
                value,
                headers,
                timestamp: self.stamping.stamp(i64::MAX, self.clock.now()),
                label: seq,
            };
            match self
                .sink
                .send(record, event.headers.len() + ENVELOPE_BYTES + reason.len())
            {
                Ok(Sent::Tag(tag)) => {
                    route.sent(partition, turn, tag);
                    self.count(at);
                    self.dead_letter_sent((seq, event.id), &topic, reason, tag);
                    return Ok(Delivery::Sent(tag));
                }
                Ok(Sent::Full(bytes)) => return Err(Backpressure::Full(bytes).into()),
                Ok(Sent::Committing) => return Err(Backpressure::Committing.into()),
                Err(SendError::TooLarge) if !reference_only => reference_only = true,
                Err(error) => return Err(self.not_taken(&error).into()),
            }
        }
    }
}

fn stop_message(options: &RelayOptions, seq: i64, event: &Outgoing<'_>, reason: &str) -> String {
    let (relay, id) = (&options.name, event.id);
    let seq = if seq > 0 {
        format!("seq {seq}, ")
    } else {
        String::new()
    };
    let otherwise = match options.debezium {
        None => format!(
            "park, which only holds back this aggregate (`tidings parked discard {id} --name \
             {relay}` then discards this one event), or with --on-undeliverable dead-letter"
        ),
        Some(_) => "dead-letter".into(),
    };
    format!(
        "event {id} ({seq}{} of {}/{}) cannot be delivered: {reason}; the relay stops before it, \
         so that nothing is skipped. Correct the cause and start the relay again, or start it with \
         --on-undeliverable {otherwise}",
        event.event_type, event.aggregate_type, event.aggregate_id
    )
}
