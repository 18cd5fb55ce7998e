//! Encoding of the offsets that are finished beyond the first unfinished one, as text for the
//! metadata of a commit. Pure.
//!
//! The text is `tidings1.` followed by a list of numbers (LEB128) in base64. The first number is
//! the committed offset. Then come, alternately, the numbers of unfinished and of finished offsets.
//! With the committed offset, metadata that was copied to another offset is detected and ignored.
//!
//! If the id of the topic is known, the text is `tidings2.`, the id, a dot, and the list, which may
//! be empty. A commit belongs to the topic with that id. A member that has not noticed yet that the
//! topic was created again commits offsets of the deleted one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::kafka::TopicId;

/// Ranges of finished offsets, in ascending order, with gaps between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OffsetMetadata(Vec<(i64, i64)>);

/// Error for metadata that was written by other software or for another offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the commit's metadata was not written by this version of Tidings for this offset")]
pub(crate) struct ForeignMetadata;

const PREFIX: &str = "tidings1.";

/// Followed by the id of the topic and a dot.
const PREFIX_WITH_TOPIC: &str = "tidings2.";

/// Maximum length of the text. Brokers accept 4,096 bytes by default (`offset.metadata.max.bytes`).
const TEXT_BYTES_MAX: usize = 4_000;

/// Maximum length of the text before the list: the prefix, an id and a dot.
const HEAD_BYTES_MAX: usize = PREFIX_WITH_TOPIC.len() + 39;

/// Maximum length before base64, which turns three bytes into four.
const BYTES_MAX: usize = (TEXT_BYTES_MAX - HEAD_BYTES_MAX) / 4 * 3;

impl OffsetMetadata {
    /// Adds an offset that is greater than all others.
    #[cfg(test)]
    fn push(&mut self, offset: i64) {
        self.push_range(offset, offset + 1);
    }

    /// Adds the offsets from `start` to before `end`. They must be greater than all others.
    pub(crate) fn push_range(&mut self, start: i64, end: i64) {
        match self.0.last_mut() {
            Some((_, last)) if *last == start => *last = end,
            _ => self.0.push((start, end)),
        }
    }

    /// Returns the number of finished offsets.
    #[cfg(feature = "cli")]
    pub(crate) fn count(&self) -> i64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// Returns `true` if the offset is finished.
    pub(crate) fn contains(&self, offset: i64) -> bool {
        let at = self.0.partition_point(|(_, end)| *end <= offset);
        self.0.get(at).is_some_and(|(start, _)| *start <= offset)
    }

    /// Returns the metadata for a commit of `offset` in the topic with this id. It has no list if
    /// no offset is finished. Ranges that do not fit are omitted from the end, so their events are
    /// handled again.
    pub(crate) fn encode(&self, offset: i64, topic: Option<&TopicId>) -> String {
        let list = self.encode_list(offset);
        match topic {
            Some(id) => format!("{PREFIX_WITH_TOPIC}{id}.{list}"),
            None if list.is_empty() => list,
            None => format!("{PREFIX}{list}"),
        }
    }

    fn encode_list(&self, offset: i64) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        let mut bytes = Vec::new();
        put(&mut bytes, offset);
        let mut at = offset;
        for (start, end) in &self.0 {
            let before = bytes.len();
            put(&mut bytes, start - at);
            put(&mut bytes, end - start);
            if bytes.len() > BYTES_MAX {
                bytes.truncate(before);
                break;
            }
            at = *end;
        }
        STANDARD_NO_PAD.encode(bytes)
    }

    /// Decodes the metadata of a commit of `offset`. Empty metadata means that no offset is
    /// finished.
    pub(crate) fn decode(text: &str, offset: i64) -> Result<Self, ForeignMetadata> {
        let encoded = match with_topic(text) {
            Some((_, "")) => return Ok(Self::default()),
            Some((_, list)) => list,
            None if text.is_empty() => return Ok(Self::default()),
            None => text.strip_prefix(PREFIX).ok_or(ForeignMetadata)?,
        };
        let bytes = STANDARD_NO_PAD
            .decode(encoded)
            .map_err(|_| ForeignMetadata)?;
        let mut rest = &bytes[..];
        let mut at = take(&mut rest)
            .filter(|said| *said == offset)
            .ok_or(ForeignMetadata)?;
        let mut finished = Self::default();
        while !rest.is_empty() {
            let open = take(&mut rest).ok_or(ForeignMetadata)?;
            let done = take(&mut rest)
                .filter(|done| *done > 0)
                .ok_or(ForeignMetadata)?;
            let start = at.checked_add(open).ok_or(ForeignMetadata)?;
            at = start.checked_add(done).ok_or(ForeignMetadata)?;
            finished.push_range(start, at);
        }
        Ok(finished)
    }
}

/// Returns the id of the topic to which a commit with this metadata belongs, if it is stated.
pub(crate) fn topic_of(text: &str) -> Option<TopicId> {
    with_topic(text).map(|(id, _)| id)
}

fn with_topic(text: &str) -> Option<(TopicId, &str)> {
    let (id, list) = text.strip_prefix(PREFIX_WITH_TOPIC)?.split_once('.')?;
    Some((TopicId::parse(id)?, list))
}

fn put(bytes: &mut Vec<u8>, number: i64) {
    // Offsets, and distances between ascending offsets, are not negative.
    let mut rest = number.cast_unsigned();
    while rest >= 0x80 {
        bytes.push((rest as u8 & 0x7f) | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

fn take(bytes: &mut &[u8]) -> Option<i64> {
    let mut number = 0u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return i64::try_from(number).ok();
        }
    }
    None
}

/// Decodes arbitrary bytes as the metadata of an offset. For the fuzz target.
#[cfg(all(any(test, fuzzing), feature = "relay"))]
pub(crate) fn fuzz_offset_metadata(bytes: &[u8]) {
    let Some((offset, text)) = bytes.split_first_chunk() else {
        return;
    };
    let offset = i64::from_be_bytes(*offset);
    let Ok(finished) = OffsetMetadata::decode(&String::from_utf8_lossy(text), offset) else {
        return;
    };
    let mut watermark = super::watermark::Watermark::new(Some(offset), finished.clone());
    let tickets: Vec<_> = (0..8)
        .filter_map(|n| watermark.add(offset.saturating_add(n).min(i64::MAX - 1)))
        .collect();
    tickets
        .into_iter()
        .skip(1)
        .for_each(|ticket| watermark.finish(ticket));
    let _ = watermark.finished_beyond();
    let written = finished.encode(offset, topic_of(&String::from_utf8_lossy(text)).as_ref());
    assert!(OffsetMetadata::decode(&written, offset).is_ok());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn of(offsets: &BTreeSet<i64>) -> OffsetMetadata {
        let mut finished = OffsetMetadata::default();
        offsets.iter().for_each(|offset| finished.push(*offset));
        finished
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            base in 0..i64::MAX / 2,
            distances in prop::collection::btree_set(0..2_000i64, 0..300),
        ) {
            let offsets: BTreeSet<i64> = distances.iter().map(|distance| base + distance).collect();
            let finished = of(&offsets);
            let id = TopicId::parse("y/TxDjvvSt+5P5brNGFqSA0123456789abcdef");
            for topic in [None, id.as_ref()] {
                let text = finished.encode(base, topic);
                let read = OffsetMetadata::decode(&text, base).expect("it was just written");
                prop_assert_eq!(&read, &finished);
                prop_assert_eq!(topic_of(&text), topic.cloned());
            }
            let read = finished;
            for offset in base..base + 2_001 {
                prop_assert_eq!(read.contains(offset), offsets.contains(&offset));
            }
        }

        #[test]
        fn any_text_is_read_or_refused(
            text in ".*",
            bytes in prop::collection::vec(any::<u8>(), 0..40),
            offset in 0..100i64,
        ) {
            let _ = OffsetMetadata::decode(&text, offset);
            let _ = OffsetMetadata::decode(&format!("{PREFIX}{}", STANDARD_NO_PAD.encode(bytes)), offset);
        }

        #[test]
        fn what_does_not_fit_is_left_out_from_the_end(
            base in 0..1_000_000i64,
            step in 2..5_000i64,
        ) {
            let all: BTreeSet<i64> = (0..5_000).map(|n| base + n * step).collect();
            let id = TopicId::parse("y/TxDjvvSt+5P5brNGFqSA0123456789abcdef");
            let text = of(&all).encode(base, id.as_ref());
            prop_assert!(text.len() <= TEXT_BYTES_MAX);
            let read = OffsetMetadata::decode(&text, base).expect("it was just written");
            let kept = all.iter().filter(|offset| read.contains(**offset)).count();
            prop_assert!(kept > 500);
            prop_assert!(all.iter().take(kept).all(|offset| read.contains(*offset)));
        }
    }

    #[test]
    fn metadata_of_others_or_of_another_offset_is_refused() {
        let text = of(&BTreeSet::from([12, 13])).encode(10, None);
        assert_eq!(OffsetMetadata::decode(&text, 11), Err(ForeignMetadata));
        for foreign in [
            "x",
            "tidings2.AAAA",
            "tidings2.AAAA.AAAA",
            "b64:AAAA",
            "tidings1.",
            "tidings1.!",
        ] {
            assert_eq!(
                OffsetMetadata::decode(foreign, 10),
                Err(ForeignMetadata),
                "{foreign}"
            );
        }
    }
}
