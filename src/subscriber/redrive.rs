//! Dead letters, looked at again: listed, replayed to the subscriber they failed in, or discarded.
//!
//! A replay goes to `<topic>.<group>.redrive`, which this subscriber alone reads: other groups of the topic have handled the event. It keeps its key, so the events of one aggregate are
//! replayed in the order in which they died; and its id, so that an inbox knows it. Which letters are done with is committed for the group `tidings-redrive`, as a subscriber
//! commits what it has finished.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::dead_letters::{
    ATTEMPTS, EXCEPTION_MESSAGE, ORIGINAL_OFFSET, ORIGINAL_PARTITION, ORIGINAL_TOPIC, REPLAYS, bounded_count, is_ours,
};
use super::finished::Finished;
use super::watermark::{Ticket, Watermark};
use crate::kafka::{Beat, Committed, Incoming, Letter, Message, OVERDUE, Partition, READ_TIMEOUT, Settings, Shelf, bounded, watched};
use crate::subscriber::{Bus, BusError};

/// The group whose commits say which letters are done with.
const GROUP: &str = "tidings-redrive";

/// How often a letter is replayed before it must be asked for.
pub(crate) const REPLAYS_MAX: u32 = 3;

/// The topic in which replayed events come back to a subscriber.
pub(crate) fn redrive_topic(topic: &str, group: &str) -> String {
    format!("{topic}.{group}.redrive")
}

/// Which letters are meant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Died since then.
    pub(crate) since: Option<DateTime<Utc>>,
    pub(crate) event_type: Option<String>,
    /// The first of them only.
    pub(crate) max: Option<usize>,
    /// These, by partition and offset; all if there are none.
    pub(crate) places: Vec<(i32, i64)>,
}

/// A dead letter.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetter {
    pub(crate) record: Incoming,
    pub(crate) event_type: String,
    pub(crate) key: String,
    pub(crate) reason: String,
    pub(crate) failed_at: DateTime<Utc>,
    pub(crate) attempts: u32,
    pub(crate) replays: u32,
    pub(crate) origin: Option<Origin>,
}

/// Where a letter was first read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) topic: String,
    pub(crate) group: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

impl DeadLetter {
    pub(crate) fn of(record: Incoming) -> Self {
        let text = |name: &str| record.header(name).map(|value| String::from_utf8_lossy(value).into_owned());
        let number = |name: &str| record.header(name).map_or(0, bounded_count);
        let failed_at = text("tidings_failed_at").and_then(|time| DateTime::parse_from_rfc3339(&time).ok()).map(|time| time.to_utc());
        let origin = || {
            Some(Origin {
                topic: text(ORIGINAL_TOPIC)?,
                group: text("kafka_dlt-original-consumer-group")?,
                partition: i32::from_be_bytes(record.header(ORIGINAL_PARTITION)?.try_into().ok()?),
                offset: i64::from_be_bytes(record.header(ORIGINAL_OFFSET)?.try_into().ok()?),
            })
        };
        Self {
            event_type: Message::read(record.clone(), None).map(|message| message.event_type().to_owned()).unwrap_or_default(),
            key: record.key().map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default(),
            reason: text(EXCEPTION_MESSAGE).unwrap_or_default(),
            failed_at: failed_at.or_else(|| DateTime::from_timestamp_millis(record.timestamp)).unwrap_or_default(),
            attempts: number(ATTEMPTS),
            replays: number(REPLAYS),
            origin: origin(),
            record,
        }
    }

    fn is_meant(&self, filter: &Filter) -> bool {
        filter.since.is_none_or(|since| self.failed_at >= since)
            && filter.event_type.as_ref().is_none_or(|event_type| *event_type == self.event_type)
            && (filter.places.is_empty() || filter.places.contains(&(self.record.partition, self.record.offset)))
    }

    /// The topic to which a replay goes. Any producer can write a letter's headers, so they count only if they agree with the
    /// name of the letter's own topic, or with a group that the operator names.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn target(&self, group: Option<&str>) -> Result<String, String> {
        let Some(origin) = &self.origin else { return Err("does not say which subscriber it died in".into()) };
        let (from, of) = (&origin.topic, &origin.group);
        let is_named = match group {
            Some(group) => group == of,
            None => *self.record.topic == *format!("{from}.{of}.dlt"),
        };
        if is_named {
            return Ok(redrive_topic(from, of));
        }
        Err(match group {
            Some(group) => format!("died in {of} by its headers, and not in {group}"),
            None => format!("died in {of} by its headers, on {from}, whose dead letters are in another topic: confirm with --group {of}"),
        })
    }

    /// The record without what was said of its death, for this topic.
    fn replayed(&self, target: String) -> Letter {
        let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let is_kept = |name: &[u8]| name == ATTEMPTS.as_bytes() || !is_ours(name) && name != REPLAYS.as_bytes();
        let kept = self.record.headers_with_nulls().filter(|(name, _)| is_kept(name));
        let mut headers: Vec<(String, Option<Vec<u8>>)> = kept.map(|(header, value)| (name(header), value.map(<[u8]>::to_vec))).collect();
        headers.push((REPLAYS.into(), Some(self.replays.saturating_add(1).to_string().into_bytes())));
        Letter { topic: target, key: self.record.key().map(<[u8]>::to_vec), value: self.record.value().map(<[u8]>::to_vec), headers }
    }
}

/// A topic of dead letters.
pub(crate) struct DeadLetterBox {
    shelf: Arc<Shelf>,
    watermarks: HashMap<i32, (Partition, Watermark)>,
    letters: Vec<(DeadLetter, Ticket)>,
}

impl DeadLetterBox {
    /// Reads the topic: the selected letters that are neither replayed nor discarded.
    ///
    /// # Errors
    /// The cluster's error; a client that hangs.
    ///
    /// # Cancel safety
    /// Dropping the future abandons a thread, which reads on to the end.
    pub(crate) async fn read(settings: &Settings, topic: &str, filter: Filter) -> Result<Self, String> {
        let (settings, topic) = (settings.clone(), topic.to_owned());
        let limit = READ_TIMEOUT + OVERDUE;
        let read = watched("consumer_poll", limit, move |beat| Self::read_blocking(&settings, &topic, &filter, beat));
        read.await.unwrap_or_else(|unanswered| Err(unanswered.to_string()))
    }

    fn read_blocking(settings: &Settings, topic: &str, filter: &Filter, beat: &Beat) -> Result<Self, String> {
        let shelf = Shelf::open(settings, GROUP, topic)?;
        let committed = shelf.committed()?;
        let mut watermarks: HashMap<i32, (Partition, Watermark)> = HashMap::new();
        for Committed { partition, offset, metadata } in &committed {
            // What somebody else committed for this group is not believed: letters are shown again.
            let finished = Finished::decode(metadata, *offset).unwrap_or_default();
            watermarks.insert(partition.number, (partition.clone(), Watermark::new(Some(*offset), finished)));
        }
        let mut letters = Vec::new();
        shelf.read(&committed, beat, |record| {
            let partition = Partition { topic: record.topic.clone(), number: record.partition };
            let (_, watermark) = watermarks.entry(record.partition).or_insert_with(|| (partition, Watermark::default()));
            let Some(ticket) = watermark.add(record.offset) else { return };
            if filter.max.is_none_or(|max| letters.len() < max) {
                let letter = DeadLetter::of(record);
                if letter.is_meant(filter) {
                    letters.push((letter, ticket));
                }
            }
        })?;
        Ok(Self { shelf: Arc::new(shelf), watermarks, letters })
    }

    /// The letters, partition by partition in their order.
    pub(crate) fn letters(&self) -> impl ExactSizeIterator<Item = &DeadLetter> {
        self.letters.iter().map(|(letter, _)| letter)
    }

    /// Sends one letter back to its subscriber, by this topic of [`DeadLetter::target`].
    ///
    /// # Errors
    /// When Kafka does not take it: it is still dead.
    pub(crate) async fn replay(&mut self, bus: &Bus, at: usize, target: String) -> Result<(), BusError> {
        let (letter, ticket) = &self.letters[at];
        let like = letter.origin.as_ref().map_or(&*letter.record.topic, |origin| &*origin.topic);
        bus.send_letter(&letter.replayed(target), like).await?;
        let (partition, ticket) = (letter.record.partition, *ticket);
        self.finish(partition, ticket);
        Ok(())
    }

    /// One letter is done with.
    pub(crate) fn discard(&mut self, at: usize) {
        let (partition, ticket) = (self.letters[at].0.record.partition, self.letters[at].1);
        self.finish(partition, ticket);
    }

    /// Stores which letters are replayed or discarded.
    ///
    /// # Errors
    /// The coordinator's error, or a client that hangs: these letters are listed again.
    pub(crate) async fn commit(&self) -> Result<(), String> {
        let commits: Vec<Committed> = self
            .watermarks
            .values()
            .filter_map(|(partition, watermark)| {
                let offset = watermark.position()?;
                Some(Committed { partition: partition.clone(), offset, metadata: watermark.finished_beyond().encode(offset) })
            })
            .collect();
        let shelf = self.shelf.clone();
        let committed = bounded("commit", READ_TIMEOUT + OVERDUE, move || shelf.commit(&commits));
        committed.await.unwrap_or_else(|unanswered| Err(unanswered.to_string()))
    }

    fn finish(&mut self, partition: i32, ticket: Ticket) {
        if let Some((_, watermark)) = self.watermarks.get_mut(&partition) {
            watermark.finish(ticket);
        }
    }
}

/// Reads any record as a dead letter and makes a replay of it: for the fuzz target.
#[cfg(all(any(test, fuzzing), feature = "relay"))]
pub(crate) fn fuzz_dead_letter(record: Incoming) {
    let letter = DeadLetter::of(record);
    let _ = letter.target(None).map(|target| letter.replayed(target));
}

#[cfg(test)]
mod tests {
    use super::super::dead_letters::{Obituary, attempts_of, letter};
    use super::super::handler::HandlerError;
    use super::*;
    use crate::kafka::Place;

    fn record(topic: &str, letter: &Letter) -> Incoming {
        let place = Place { topic: topic.into(), partition: 1, offset: 2, timestamp: 3 };
        let headers = letter.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        Incoming::new(place, letter.key.as_deref(), letter.value.as_deref(), headers)
    }

    #[test]
    fn a_replayed_letter_is_the_event_for_its_own_subscriber_and_counts_how_often() {
        let place = Place { topic: "order".into(), partition: 3, offset: 9, timestamp: 5 };
        let mut event =
            Incoming::new(place, Some(b"7"), Some(b"{}"), [("ce_id", Some(&b"e-1"[..])), ("x", Some(b"y")), ("null", None)].into_iter());
        let error = HandlerError::retry("broken");
        for replays in 1..=4 {
            let why = Obituary { group: "stock", error: &error, kind: "handler", attempts: 5 };
            let dead = DeadLetter::of(record("order.stock.dlt", &letter(&event, "order.stock.dlt".into(), &why)));
            assert_eq!((dead.reason.as_str(), dead.attempts, dead.replays), ("broken", 5, replays - 1));
            let origin = Origin { topic: "order".into(), group: "stock".into(), partition: 3, offset: 9 };
            assert_eq!(dead.origin, Some(origin));
            let replayed = dead.replayed(dead.target(None).expect("it says where it died"));
            assert_eq!(replayed.topic, "order.stock.redrive");
            event = record(&replayed.topic, &replayed);
            assert_eq!(attempts_of(&event, "stock"), 5);
            assert_eq!(
                (event.header("ce_id"), event.header("x"), event.header(EXCEPTION_MESSAGE)),
                (Some(&b"e-1"[..]), Some(&b"y"[..]), None)
            );
            assert!(event.headers_with_nulls().any(|header| header == (b"null", None)));
        }
    }

    #[test]
    fn a_letter_is_replayed_to_the_group_of_its_topic_or_to_one_that_is_named() {
        let place = Place { topic: "order".into(), partition: 3, offset: 9, timestamp: 5 };
        let event = Incoming::new(place, Some(b"7"), Some(b"{}"), std::iter::empty());
        let error = HandlerError::retry("broken");
        let dead = |group, topic: &str| {
            let why = Obituary { group, error: &error, kind: "handler", attempts: 5 };
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
            let refused = dead(group, topic).target(named).expect_err("another group's");
            assert!(refused.contains(group), "{refused}");
        }
        assert!(DeadLetter::of(event.clone()).target(None).is_err());
    }

    #[test]
    fn letters_are_chosen_by_age_type_and_place() {
        let headers = [("ce_specversion", "1.0"), ("ce_id", "1"), ("ce_type", "Placed"), ("tidings_failed_at", "2026-01-02T03:04:05Z")];
        let headers = headers.into_iter().map(|(name, value)| (name, Some(value.as_bytes())));
        let place = Place { topic: "t".into(), partition: 1, offset: 2, timestamp: 3 };
        let letter = DeadLetter::of(Incoming::new(place, Some(b"7"), None, headers));
        let since = |text: &str| DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc());
        let meant = |filter| letter.is_meant(&filter);
        assert!(meant(Filter::default()));
        assert!(meant(Filter { since: since("2026-01-02T00:00:00Z"), ..Filter::default() }));
        assert!(!meant(Filter { since: since("2026-01-03T00:00:00Z"), ..Filter::default() }));
        assert!(!meant(Filter { event_type: Some("Other".into()), ..Filter::default() }));
        assert!(meant(Filter { event_type: Some("Placed".into()), places: vec![(1, 2)], ..Filter::default() }));
        assert!(!meant(Filter { places: vec![(1, 3)], ..Filter::default() }));
    }
}
