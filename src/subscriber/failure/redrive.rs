//! Dead letters: listing them, replaying them to the subscriber that could not handle them, and
//! discarding them.
//!
//! A replay goes to `<topic>.<group>.redrive`, which only this subscriber reads, because other
//! groups have already handled the event. The replay keeps the key, so the events of one aggregate
//! are replayed in the order of their failures. It also keeps the id, so that an inbox recognizes
//! the event. Progress is committed for the group `tidings-redrive`, in the same format as a
//! subscriber's finished records.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::dead_letter::{
    ATTEMPTS, EXCEPTION_MESSAGE, ORIGINAL_OFFSET, ORIGINAL_PARTITION, ORIGINAL_TOPIC, REPLAYS,
    bounded_count, is_ours,
};
use crate::{
    kafka::{
        ASK_LIMIT, Beat, Committed, ConsumerError, Incoming, Letter, Message, OVERDUE, Partition,
        SILENCE_MAX, Settings, TopicReader, bounded, watched,
    },
    subscriber::{
        Bus, BusError,
        offsets::{
            metadata::OffsetMetadata,
            watermark::{Ticket, Watermark},
        },
    },
};

/// The consumer group whose commits record which letters are replayed or discarded.
pub(crate) const GROUP: &str = "tidings-redrive";

/// Maximum number of replays of a letter without explicit confirmation.
pub(crate) const REPLAYS_MAX: u32 = 3;

/// Returns the topic through which replayed events return to a subscriber.
pub(crate) fn redrive_topic(topic: &str, group: &str) -> String {
    format!("{topic}.{group}.redrive")
}

/// Selection of letters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Only letters that failed at or after this time.
    pub(crate) since: Option<DateTime<Utc>>,
    pub(crate) event_type: Option<String>,
    /// Maximum number of letters.
    pub(crate) max: Option<usize>,
    /// Only letters with this reason.
    pub(crate) reason: Option<String>,
    /// Only these letters, by partition and offset. Empty means all.
    pub(crate) places: Vec<(i32, i64)>,
}

/// A dead letter.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetter {
    pub(crate) record: Incoming,
    /// Empty if the record is not an event, as is the type.
    pub(crate) event_id: String,
    pub(crate) event_type: String,
    pub(crate) key: String,
    pub(crate) reason: String,
    pub(crate) failed_at: DateTime<Utc>,
    pub(crate) attempts: u32,
    pub(crate) replays: u32,
    pub(crate) origin: Option<Origin>,
}

/// The original record of a letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Origin {
    pub(crate) topic: String,
    pub(crate) group: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

/// Reason why a letter is not replayed. Each text continues the name of the letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("does not name the subscriber it failed in")]
    NoOrigin,
    /// The operator named another group.
    #[error("failed in {of} according to its headers, and not in {group}")]
    OtherGroup { of: String, group: String },
    /// The letter's headers do not match the name of its topic.
    #[error(
        "failed in {of} according to its headers, on {from}, whose dead letters are in another \
         topic: confirm with --group {of}"
    )]
    OtherTopic { of: String, from: String },
}

impl DeadLetter {
    pub(crate) fn of(record: Incoming) -> Self {
        let text = |name: &str| {
            record
                .header(name)
                .map(|value| String::from_utf8_lossy(value).into_owned())
        };
        let number = |name: &str| record.header(name).map_or(0, bounded_count);
        let failed_at = text("tidings_failed_at")
            .and_then(|time| DateTime::parse_from_rfc3339(&time).ok())
            .map(|time| time.to_utc());
        let origin = || {
            Some(Origin {
                topic: text(ORIGINAL_TOPIC)?,
                group: text("kafka_dlt-original-consumer-group")?,
                partition: i32::from_be_bytes(record.header(ORIGINAL_PARTITION)?.try_into().ok()?),
                offset: i64::from_be_bytes(record.header(ORIGINAL_OFFSET)?.try_into().ok()?),
            })
        };
        let (event_id, event_type) = Message::read(record.clone(), None)
            .map(|message| (message.id().into_owned(), message.event_type().to_owned()))
            .unwrap_or_default();
        Self {
            event_id,
            event_type,
            key: record
                .key()
                .map(|key| String::from_utf8_lossy(key).into_owned())
                .unwrap_or_default(),
            reason: text(EXCEPTION_MESSAGE).unwrap_or_default(),
            failed_at: failed_at
                .or_else(|| DateTime::from_timestamp_millis(record.timestamp))
                .unwrap_or_default(),
            attempts: number(ATTEMPTS),
            replays: number(REPLAYS),
            origin: origin(),
            record,
        }
    }

    pub(crate) fn is_meant(&self, filter: &Filter) -> bool {
        filter.since.is_none_or(|since| self.failed_at >= since)
            && filter
                .event_type
                .as_ref()
                .is_none_or(|event_type| *event_type == self.event_type)
            && filter
                .reason
                .as_ref()
                .is_none_or(|reason| *reason == self.reason)
            && (filter.places.is_empty()
                || filter
                    .places
                    .contains(&(self.record.partition, self.record.offset)))
    }

    /// Returns the topic for a replay. Any producer can set a letter's headers, so they are
    /// accepted only if they match the name of the letter's own topic, or a group that the operator
    /// names.
    ///
    /// # Errors
    ///
    /// Returns the reason if there is no such topic.
    pub(crate) fn target(&self, group: Option<&str>) -> Result<String, TargetError> {
        let Some(origin) = &self.origin else {
            return Err(TargetError::NoOrigin);
        };
        let (from, of) = (&origin.topic, &origin.group);
        let is_named = match group {
            Some(group) => group == of,
            None => *self.record.topic == *format!("{from}.{of}.dlt"),
        };
        if is_named {
            return Ok(redrive_topic(from, of));
        }
        Err(match group {
            Some(group) => TargetError::OtherGroup {
                of: of.clone(),
                group: group.to_owned(),
            },
            None => TargetError::OtherTopic {
                of: of.clone(),
                from: from.clone(),
            },
        })
    }

    /// Returns the record for this topic, without the headers about its failure.
    fn replayed(&self, target: String) -> Letter {
        let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let is_kept = |name: &[u8]| {
            name == ATTEMPTS.as_bytes() || !is_ours(name) && name != REPLAYS.as_bytes()
        };
        let kept = self
            .record
            .headers_with_nulls()
            .filter(|(name, _)| is_kept(name));
        let mut headers: Vec<(String, Option<Vec<u8>>)> = kept
            .map(|(header, value)| (name(header), value.map(<[u8]>::to_vec)))
            .collect();
        headers.push((
            REPLAYS.into(),
            Some(self.replays.saturating_add(1).to_string().into_bytes()),
        ));
        Letter {
            topic: target,
            key: self.record.key().map(<[u8]>::to_vec),
            value: self.record.value().map(<[u8]>::to_vec),
            headers,
        }
    }
}

/// A dead letter topic.
pub(crate) struct DeadLetterBox {
    reader: Arc<TopicReader>,
    watermarks: HashMap<i32, (Partition, Watermark)>,
    letters: Vec<(DeadLetter, Ticket)>,
}

impl DeadLetterBox {
    /// Reads the topic. Returns the selected letters that are neither replayed nor discarded.
    ///
    /// # Errors
    ///
    /// Returns the cluster's error, or an error if the client hangs.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, its thread continues to read until the end of the topic.
    pub(crate) async fn read(
        settings: &Settings,
        topic: &str,
        filter: Filter,
    ) -> Result<Self, ConsumerError> {
        let (settings, topic) = (settings.clone(), topic.to_owned());
        let read = watched("consumer_poll", ASK_LIMIT, move |beat| {
            Self::read_blocking(&settings, &topic, &filter, beat)
        });
        read.await?
    }

    fn read_blocking(
        settings: &Settings,
        topic: &str,
        filter: &Filter,
        beat: &Beat,
    ) -> Result<Self, ConsumerError> {
        let reader = TopicReader::of_topics(settings, GROUP)?;
        let partitions = reader.partitions_of_existing(topic, beat)?;
        let committed = reader.commits(&partitions, beat)?;
        let mut watermarks: HashMap<i32, (Partition, Watermark)> = HashMap::new();
        for Committed {
            partition,
            offset,
            metadata,
        } in &committed
        {
            // Metadata that other software committed for this group is ignored, so the letters are
            // listed again.
            let finished = OffsetMetadata::decode(metadata, *offset).unwrap_or_default();
            watermarks.insert(
                partition.number,
                (partition.clone(), Watermark::new(Some(*offset), finished)),
            );
        }
        let mut letters = Vec::new();
        reader.read_after(&partitions, &committed, beat, |record| {
            let partition = Partition {
                topic: record.topic.clone(),
                number: record.partition,
            };
            let (_, watermark) = watermarks
                .entry(record.partition)
                .or_insert_with(|| (partition, Watermark::default()));
            let Some(ticket) = watermark.add(record.offset) else {
                return ControlFlow::Continue(());
            };
            if filter.max.is_none_or(|max| letters.len() < max) {
                let letter = DeadLetter::of(record);
                if letter.is_meant(filter) {
                    letters.push((letter, ticket));
                }
            }
            ControlFlow::Continue(())
        })?;
        Ok(Self {
            reader: Arc::new(reader),
            watermarks,
            letters,
        })
    }

    /// Returns the letters by partition, in their order.
    pub(crate) fn letters(&self) -> impl ExactSizeIterator<Item = &DeadLetter> {
        self.letters.iter().map(|(letter, _)| letter)
    }

    /// Sends one letter back to its subscriber, to a topic that [`DeadLetter::target`] returned.
    ///
    /// # Errors
    ///
    /// Returns [`BusError`] if Kafka does not store the record. It remains a dead letter then.
    pub(crate) async fn replay(
        &mut self,
        bus: &Bus,
        at: usize,
        target: String,
    ) -> Result<(), BusError> {
        let (letter, ticket) = &self.letters[at];
        let like = letter
            .origin
            .as_ref()
            .map_or(&*letter.record.topic, |origin| &*origin.topic);
        bus.send_letter(&letter.replayed(target), like).await?;
        let (partition, ticket) = (letter.record.partition, *ticket);
        self.finish(partition, ticket);
        Ok(())
    }

    /// Marks one letter as discarded.
    pub(crate) fn discard(&mut self, at: usize) {
        let (partition, ticket) = (self.letters[at].0.record.partition, self.letters[at].1);
        self.finish(partition, ticket);
    }

    /// Commits which letters are replayed or discarded.
    ///
    /// # Errors
    ///
    /// Returns the coordinator's error, or an error if the client hangs. These letters are then
    /// listed again.
    pub(crate) async fn commit(&self) -> Result<(), ConsumerError> {
        let commits: Vec<Committed> = self
            .watermarks
            .values()
            .filter_map(|(partition, watermark)| {
                let offset = watermark.position()?;
                Some(Committed {
                    partition: partition.clone(),
                    offset,
                    metadata: watermark.finished_beyond().encode(offset, None),
                })
            })
            .collect();
        let reader = self.reader.clone();
        let committed = bounded("commit", SILENCE_MAX + OVERDUE, move || {
            reader.commit(&commits)
        });
        committed.await?
    }

    fn finish(&mut self, partition: i32, ticket: Ticket) {
        if let Some((_, watermark)) = self.watermarks.get_mut(&partition) {
            watermark.finish(ticket);
        }
    }
}

/// Reads any record as a dead letter and creates a replay of it. For the fuzz target.
#[cfg(all(any(test, fuzzing), feature = "relay"))]
pub(crate) fn fuzz_dead_letter(record: Incoming) {
    let letter = DeadLetter::of(record);
    let _ = letter.target(None).map(|target| letter.replayed(target));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Place;
    use crate::subscriber::failure::dead_letter::{FailureInfo, attempts_of, letter};
    use crate::subscriber::handler::HandlerError;

    fn record(topic: &str, letter: &Letter) -> Incoming {
        let place = Place {
            topic: topic.into(),
            partition: 1,
            offset: 2,
            timestamp: 3,
        };
        let headers = letter
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_deref()));
        Incoming::new(
            place,
            letter.key.as_deref(),
            letter.value.as_deref(),
            headers,
        )
    }

    #[test]
    fn a_replayed_letter_is_the_event_for_its_own_subscriber_and_counts_how_often() {
        let place = Place {
            topic: "order".into(),
            partition: 3,
            offset: 9,
            timestamp: 5,
        };
        let mut event = Incoming::new(
            place,
            Some(b"7"),
            Some(b"{}"),
            [
                ("ce_id", Some(&b"e-1"[..])),
                ("x", Some(b"y")),
                ("null", None),
            ]
            .into_iter(),
        );
        let error = HandlerError::retry("broken");
        for replays in 1..=4 {
            let why = FailureInfo {
                group: "stock",
                error: &error,
                kind: "handler",
                attempts: 5,
            };
            let dead = DeadLetter::of(record(
                "order.stock.dlt",
                &letter(&event, "order.stock.dlt".into(), &why),
            ));
            assert_eq!(
                (dead.reason.as_str(), dead.attempts, dead.replays),
                ("broken", 5, replays - 1)
            );
            let origin = Origin {
                topic: "order".into(),
                group: "stock".into(),
                partition: 3,
                offset: 9,
            };
            assert_eq!(dead.origin, Some(origin));
            let replayed = dead.replayed(dead.target(None).expect("the headers name the group"));
            assert_eq!(replayed.topic, "order.stock.redrive");
            event = record(&replayed.topic, &replayed);
            assert_eq!(attempts_of(&event, "stock"), 5);
            assert_eq!(
                (
                    event.header("ce_id"),
                    event.header("x"),
                    event.header(EXCEPTION_MESSAGE)
                ),
                (Some(&b"e-1"[..]), Some(&b"y"[..]), None)
            );
            assert!(
                event
                    .headers_with_nulls()
                    .any(|header| header == (b"null", None))
            );
        }
    }

    #[test]
    fn a_letter_is_replayed_to_the_group_of_its_topic_or_to_one_that_is_named() {
        let place = Place {
            topic: "order".into(),
            partition: 3,
            offset: 9,
            timestamp: 5,
        };
        let event = Incoming::new(place, Some(b"7"), Some(b"{}"), std::iter::empty());
        let error = HandlerError::retry("broken");
        let dead = |group, topic: &str| {
            let why = FailureInfo {
                group,
                error: &error,
                kind: "handler",
                attempts: 5,
            };
            DeadLetter::of(record(topic, &letter(&event, topic.into(), &why)))
        };
        let genuine = Ok("order.stock.redrive".to_owned());
        assert_eq!(dead("stock", "order.stock.dlt").target(None), genuine);
        assert_eq!(dead("stock", "graveyard").target(Some("stock")), genuine);
        for (group, topic, named) in [
            ("ledger", "order.stock.dlt", None),
            ("stock", "payments.stock.dlt", None),
            ("stock", "graveyard", None),
            ("ledger", "graveyard", Some("stock")),
            ("ledger", "order.ledger.dlt", Some("stock")),
        ] {
            let refused = dead(group, topic)
                .target(named)
                .expect_err("another group's");
            assert!(refused.to_string().contains(group), "{refused}");
        }
        assert!(DeadLetter::of(event.clone()).target(None).is_err());
    }

    #[test]
    fn letters_are_chosen_by_age_type_and_place() {
        let headers = [
            ("ce_specversion", "1.0"),
            ("ce_id", "1"),
            ("ce_type", "Placed"),
            ("tidings_failed_at", "2026-01-02T03:04:05Z"),
        ];
        let headers = headers
            .into_iter()
            .map(|(name, value)| (name, Some(value.as_bytes())));
        let place = Place {
            topic: "t".into(),
            partition: 1,
            offset: 2,
            timestamp: 3,
        };
        let letter = DeadLetter::of(Incoming::new(place, Some(b"7"), None, headers));
        let since = |text: &str| {
            DateTime::parse_from_rfc3339(text)
                .ok()
                .map(|time| time.to_utc())
        };
        let meant = |filter| letter.is_meant(&filter);
        assert!(meant(Filter::default()));
        assert!(meant(Filter {
            since: since("2026-01-02T00:00:00Z"),
            ..Filter::default()
        }));
        assert!(!meant(Filter {
            since: since("2026-01-03T00:00:00Z"),
            ..Filter::default()
        }));
        assert!(!meant(Filter {
            event_type: Some("Other".into()),
            ..Filter::default()
        }));
        assert!(meant(Filter {
            event_type: Some("Placed".into()),
            places: vec![(1, 2)],
            ..Filter::default()
        }));
        assert!(!meant(Filter {
            places: vec![(1, 3)],
            ..Filter::default()
        }));
    }
}
