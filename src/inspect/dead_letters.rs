//! Dead letters across all topics `*.dlt`: their number, the newest ones, and the letters of one
//! topic.

mod newest;

use chrono::{DateTime, Utc};
use serde::Serialize;

pub(crate) use self::newest::{NewestLetters, newest};
use super::InspectError;
use crate::kafka::{Settings, backlog};
use crate::subscriber::failure::redrive::{DeadLetter, DeadLetterBox, Filter, GROUP, Origin};
use crate::subscriber::offsets::metadata::OffsetMetadata;

/// Ending of the names of dead letter topics.
const SUFFIX: &str = ".dlt";

/// A dead letter topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LetterTopic {
    pub(crate) topic: String,
    /// Maximum number of letters that are neither replayed nor discarded. Transaction markers count
    /// too.
    pub(crate) letters_max: i64,
}

/// A dead letter without its headers and its payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LetterSummary {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// `None` if the record is not an event.
    pub(crate) id: Option<String>,
    #[serde(rename = "type")]
    pub(crate) event_type: String,
    pub(crate) key: String,
    pub(crate) reason: String,
    pub(crate) failed_at: DateTime<Utc>,
    pub(crate) attempts: u32,
    pub(crate) replays: u32,
    /// The original record, with the subscriber as its group.
    pub(crate) origin: Option<Origin>,
}

impl From<&DeadLetter> for LetterSummary {
    fn from(letter: &DeadLetter) -> Self {
        Self {
            topic: letter.record.topic.to_string(),
            partition: letter.record.partition,
            offset: letter.record.offset,
            id: Some(letter.event_id.clone()).filter(|id| !id.is_empty()),
            event_type: letter.event_type.clone(),
            key: letter.key.clone(),
            reason: letter.reason.clone(),
            failed_at: letter.failed_at,
            attempts: letter.attempts,
            replays: letter.replays,
            origin: letter.origin.clone(),
        }
    }
}

/// Returns every dead letter topic, by name. Reads offsets and no records.
///
/// # Errors
///
/// Returns the cluster's error.
pub(crate) async fn topics(settings: &Settings) -> Result<Vec<LetterTopic>, InspectError> {
    let partitions = backlog(settings, GROUP, |topic| topic.ends_with(SUFFIX))
        .await
        .map_err(InspectError::kafka)?;
    let mut topics: Vec<LetterTopic> = Vec::new();
    for partition in partitions {
        let finished = partition
            .committed
            .and_then(|offset| OffsetMetadata::decode(&partition.metadata, offset).ok())
            .map_or(0, |metadata| metadata.count());
        let left = (partition.left() - finished).max(0);
        match topics
            .last_mut()
            .filter(|topic| topic.topic == partition.topic)
        {
            Some(topic) => topic.letters_max += left,
            None => topics.push(LetterTopic {
                topic: partition.topic,
                letters_max: left,
            }),
        }
    }
    Ok(topics)
}

/// Returns the letters of a topic that are neither replayed nor discarded, up to the filter's
/// maximum.
///
/// # Errors
///
/// Returns the cluster's error, or an error if the topic is no dead letter topic.
pub(crate) async fn letters(
    settings: &Settings,
    topic: &str,
    filter: Filter,
) -> Result<Vec<DeadLetter>, InspectError> {
    if !topic.ends_with(SUFFIX) {
        let text = format!("the name of topic `{topic}` does not end with {SUFFIX}");
        return Err(InspectError::Kafka { text });
    }
    let letters = DeadLetterBox::read(settings, topic, filter)
        .await
        .map_err(InspectError::kafka)?;
    Ok(letters.letters().cloned().collect())
}

/// A text is not the place of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write PARTITION/OFFSET, e.g. 3/120")]
pub(crate) struct PlaceError;

/// Parses `PARTITION/OFFSET`, the place of a letter in its topic.
///
/// # Errors
///
/// Returns [`PlaceError`] for any other text.
pub(crate) fn place(text: &str) -> Result<(i32, i64), PlaceError> {
    let parts = text
        .split_once('/')
        .and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)));
    parts.ok_or(PlaceError)
}
