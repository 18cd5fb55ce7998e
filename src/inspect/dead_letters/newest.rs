//! The newest dead letters of all topics, in bounded memory and time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::ControlFlow;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use tokio::time::{Instant, timeout_at};

use super::{InspectError, LetterSummary, topics};
use crate::escape::shortened;
use crate::kafka::{ConsumerError, Settings};
use crate::subscriber::failure::letter_reader::each_letter;
use crate::subscriber::failure::redrive::{DeadLetter, Filter};

/// Time for all topics. A cluster that responds slowly leaves topics unread.
const READ_WITHIN: Duration = Duration::from_secs(90);

/// Topics that are read at the same time. Each has a client with its own buffers.
const TOPICS_AT_ONCE: usize = 4;

/// Characters of a text that are kept. Subscribers write reasons of at most 2,000 bytes, but any
/// producer can write a larger header.
const TEXT_CHARACTERS_MAX: usize = 2_000;

/// The newest dead letters of all topics.
#[derive(Clone, Debug, Default)]
pub(crate) struct NewestLetters {
    /// The letters, the newest first.
    pub(crate) letters: Vec<LetterSummary>,
    /// Number of letters that match the filter, including those that are left out.
    pub(crate) matching: usize,
    /// Topics that could not be read, with the reasons. Their letters are missing.
    pub(crate) unread: Vec<(String, String)>,
}

/// Returns the newest `max` letters of all topics that match the filter and are neither replayed
/// nor discarded. The filter's own maximum does not apply.
///
/// # Errors
///
/// Returns the cluster's error if it does not list its topics.
pub(crate) async fn newest(
    settings: &Settings,
    filter: &Filter,
    max: usize,
) -> Result<NewestLetters, InspectError> {
    let deadline = Instant::now() + READ_WITHIN;
    let topics = topics(settings).await?;
    let with_letters = topics.into_iter().filter(|topic| topic.letters_max > 0);
    let reads = with_letters.map(|topic| async {
        let read = of_topic(settings, &topic.topic, filter.clone(), max, deadline).await;
        (topic.topic, read)
    });
    let mut reads = stream::iter(reads).buffer_unordered(TOPICS_AT_ONCE);
    let (mut newest, mut unread) = (Newest::new(max), Vec::new());
    while let Some((topic, read)) = reads.next().await {
        match read {
            Ok(letters) => newest.append(letters),
            Err(error) => unread.push((topic, error.to_string())),
        }
    }
    unread.sort();
    let matching = newest.matching;
    Ok(NewestLetters {
        letters: newest.into_letters(),
        matching,
        unread,
    })
}

/// Reads one topic to its end.
async fn of_topic(
    settings: &Settings,
    topic: &str,
    filter: Filter,
    max: usize,
    deadline: Instant,
) -> Result<Newest, InspectError> {
    let late = || {
        let seconds = READ_WITHIN.as_secs();
        InspectError::kafka(format!("its end was not reached within {seconds} s"))
    };
    let letters = each_letter(settings, topic, Newest::new(max), move |newest, letter| {
        newest.add(&letter, &filter);
        // The thread continues after its future is dropped.
        match Instant::now() < deadline {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    });
    match timeout_at(deadline, letters).await {
        Ok(Ok(_)) if Instant::now() >= deadline => Err(late()),
        Ok(Ok(letters)) => Ok(letters),
        // The topic was deleted after the list of topics was read.
        Ok(Err(ConsumerError::MissingTopic(_))) => Ok(Newest::new(max)),
        Ok(Err(error)) => Err(InspectError::kafka(error)),
        Err(_) => Err(late()),
    }
}

/// The newest letters of those that were added.
struct Newest {
    max: usize,
    matching: usize,
    /// The oldest is at the top.
    letters: BinaryHeap<Reverse<ByTime>>,
}

/// A letter in the order of its failure, then of its place.
struct ByTime(LetterSummary);

impl Newest {
    fn new(max: usize) -> Self {
        Self {
            max,
            matching: 0,
            letters: BinaryHeap::new(),
        }
    }

    fn add(&mut self, letter: &DeadLetter, filter: &Filter) {
        if !letter.is_meant(filter) {
            return;
        }
        self.matching += 1;
        let oldest = self.letters.peek().map(|oldest| oldest.0.0.failed_at);
        let is_full = self.letters.len() >= self.max;
        if is_full && oldest.is_none_or(|oldest| letter.failed_at < oldest) {
            return;
        }
        let mut letter = LetterSummary::from(letter);
        bound(&mut letter);
        self.push(ByTime(letter));
    }

    fn append(&mut self, other: Self) {
        self.matching += other.matching;
        for Reverse(letter) in other.letters {
            self.push(letter);
        }
    }

    fn push(&mut self, letter: ByTime) {
        self.letters.push(Reverse(letter));
        if self.letters.len() > self.max {
            self.letters.pop();
        }
    }

    /// Returns the letters, the newest first.
    fn into_letters(self) -> Vec<LetterSummary> {
        let oldest_last = self.letters.into_sorted_vec().into_iter();
        oldest_last.map(|Reverse(ByTime(letter))| letter).collect()
    }
}

impl ByTime {
    fn order(&self) -> (chrono::DateTime<chrono::Utc>, &str, i32, i64) {
        let ByTime(letter) = self;
        (
            letter.failed_at,
            &letter.topic,
            letter.partition,
            letter.offset,
        )
    }
}

impl PartialEq for ByTime {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for ByTime {}

impl PartialOrd for ByTime {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByTime {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

/// Shortens the texts that a producer chooses.
fn bound(letter: &mut LetterSummary) {
    let texts = [&mut letter.event_type, &mut letter.key, &mut letter.reason];
    let origin = letter.origin.as_mut();
    let of_origin = origin.map(|origin| [&mut origin.topic, &mut origin.group]);
    let all = texts.into_iter().chain(of_origin.into_iter().flatten());
    for text in all.chain(letter.id.as_mut()) {
        *text = shortened(text, TEXT_CHARACTERS_MAX).into_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::{Incoming, Place};

    fn letter(topic: &str, offset: i64, failed_at: i64, reason: &str) -> DeadLetter {
        let place = Place {
            topic: topic.into(),
            partition: 0,
            offset,
            timestamp: failed_at,
        };
        let reason = ("kafka_dlt-exception-message", Some(reason.as_bytes()));
        DeadLetter::of(Incoming::new(place, Some(b"7"), None, [reason].into_iter()))
    }

    fn offsets(newest: Newest) -> Vec<i64> {
        let letters = newest.into_letters();
        letters.iter().map(|letter| letter.offset).collect()
    }

    #[test]
    fn the_newest_letters_of_all_topics_are_kept_and_all_are_counted() {
        let of_topic = |topic: &str, times: &[i64]| {
            let mut newest = Newest::new(3);
            for (offset, time) in (0..).zip(times) {
                newest.add(&letter(topic, offset, *time, "broken"), &Filter::default());
            }
            newest
        };
        let mut newest = of_topic("a.x.dlt", &[50, 10, 40, 20]);
        assert_eq!(newest.letters.len(), 3);
        newest.append(of_topic("b.x.dlt", &[5, 45]));
        assert_eq!(newest.matching, 6);
        assert_eq!(offsets(newest), [0, 1, 2]);
        assert_eq!(offsets(of_topic("a.x.dlt", &[7, 7, 7, 7])), [3, 2, 1]);
    }

    #[test]
    fn letters_that_do_not_match_are_not_counted_and_long_texts_are_shortened() {
        let mut newest = Newest::new(10);
        let filter = Filter {
            reason: Some("x".repeat(5_000)),
            ..Filter::default()
        };
        newest.add(&letter("a.x.dlt", 0, 1, "broken"), &filter);
        newest.add(&letter("a.x.dlt", 1, 1, &"x".repeat(5_000)), &filter);
        assert_eq!(newest.matching, 1);
        let letters = newest.into_letters();
        let reason = &letters[0].reason;
        assert_eq!(reason.chars().count(), TEXT_CHARACTERS_MAX + 1);
    }
}
