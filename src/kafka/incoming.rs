//! A received record, owned.

use std::sync::Arc;

/// A received record. Its bytes are one allocation and its headers another, because a record has a
/// dozen headers.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// Milliseconds since the Unix epoch.
    pub(crate) timestamp: i64,
    /// The broker, rather than the producer, set the timestamp
    /// (`message.timestamp.type=LogAppendTime`).
    pub(crate) is_stamped_by_broker: bool,
    /// Too many header names are not UTF-8, so the record was read without its headers.
    pub(crate) lacks_headers: bool,
    key: Option<Span>,
    value: Option<Span>,
    buffers: Buffers,
}

/// The memory of a record, which can be reused for another one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers {
    bytes: Vec<u8>,
    headers: Vec<(Span, Span)>,
}

/// A part of the record's bytes.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    end: u32,
}

/// Marks a header without a value, as opposed to one with an empty value.
const NULL: Span = Span {
    start: u32::MAX,
    end: u32::MAX,
};

/// The place of a record.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp: i64,
}

impl Incoming {
    /// Copies a record.
    pub(crate) fn new<'h>(
        place: Place,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)> + Clone,
    ) -> Self {
        Self::within(Buffers::default(), place, key, value, headers)
    }

    /// Copies a record into the memory of an earlier one.
    pub(crate) fn within<'h>(
        Buffers {
            mut bytes,
            headers: mut spans,
        }: Buffers,
        place: Place,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)> + Clone,
    ) -> Self {
        let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
        let (count, header_bytes) = headers.clone().fold((0, 0), |(n, bytes), (name, value)| {
            (n + 1, bytes + name.len() + length(value))
        });
        bytes.clear();
        bytes.reserve_exact(length(key) + length(value) + header_bytes);
        let put = |bytes: &mut Vec<u8>, part: &[u8]| {
            // A record is smaller than 2 GiB: the protocol counts with 32 bits.
            let start = bytes.len() as u32;
            bytes.extend_from_slice(part);
            Span {
                start,
                end: bytes.len() as u32,
            }
        };
        let key = key.map(|key| put(&mut bytes, key));
        let value = value.map(|value| put(&mut bytes, value));
        spans.clear();
        spans.reserve_exact(count);
        spans.extend(headers.map(|(name, value)| {
            let name = put(&mut bytes, name.as_bytes());
            (name, value.map_or(NULL, |value| put(&mut bytes, value)))
        }));
        let Place {
            topic,
            partition,
            offset,
            timestamp,
        } = place;
        Self {
            topic,
            partition,
            offset,
            timestamp,
            is_stamped_by_broker: false,
            lacks_headers: false,
            key,
            value,
            buffers: Buffers {
                bytes,
                headers: spans,
            },
        }
    }

    /// Takes the memory out of a record that is no longer needed. The record then has no key, no
    /// value and no headers.
    pub(crate) fn take_buffers(&mut self) -> Buffers {
        (self.key, self.value) = (None, None);
        std::mem::take(&mut self.buffers)
    }

    /// Returns the record's key.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.key.map(|span| self.at(span))
    }

    /// Returns the record's value, or `None` for a tombstone.
    pub(crate) fn value(&self) -> Option<&[u8]> {
        self.value.map(|span| self.at(span))
    }

    /// Returns all headers in the order of the record, with `None` for a header without a value.
    pub(crate) fn headers_with_nulls(
        &self,
    ) -> impl ExactSizeIterator<Item = (&[u8], Option<&[u8]>)> + Clone {
        let value = |span: Span| (span.start != NULL.start).then(|| self.at(span));
        self.buffers
            .headers
            .iter()
            .map(move |(name, span)| (self.at(*name), value(*span)))
    }

    /// Returns all headers in the order of the record. A header without a value is returned as
    /// empty.
    pub(crate) fn headers(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> + Clone {
        self.buffers
            .headers
            .iter()
            .map(|(name, value)| (self.at(*name), self.at(*value)))
    }

    /// Returns the value of the last header with this name, as Kafka's clients do for repeated
    /// names.
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        self.buffers
            .headers
            .iter()
            .rev()
            .find(|(key, _)| self.at(*key) == name.as_bytes())
            .map(|(_, value)| self.at(*value))
    }

    /// Returns the value of the header at this index.
    pub(crate) fn header_at(&self, at: usize) -> &[u8] {
        self.buffers
            .headers
            .get(at)
            .map_or(&[], |(_, value)| self.at(*value))
    }

    /// Returns the memory usage of the record in bytes.
    pub(crate) fn size(&self) -> usize {
        self.buffers.bytes.capacity()
            + self.buffers.headers.capacity() * size_of::<(Span, Span)>()
            + size_of::<Self>()
    }

    /// Returns the place of the record.
    pub(crate) fn place(&self) -> Place {
        Place {
            topic: self.topic.clone(),
            partition: self.partition,
            offset: self.offset,
            timestamp: self.timestamp,
        }
    }

    /// Returns the bytes of a part, which are empty if it is null.
    fn at(&self, span: Span) -> &[u8] {
        self.buffers
            .bytes
            .get(span.start as usize..span.end as usize)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_gives_back_its_parts() {
        let place = Place {
            topic: "t".into(),
            partition: 1,
            offset: 2,
            timestamp: 3,
        };
        let headers = [("a", Some(&b"1"[..])), ("b", None), ("a", Some(b"2"))];
        let record = Incoming::new(place, Some(b"key"), None, headers.into_iter());
        assert_eq!((record.key(), record.value()), (Some(&b"key"[..]), None));
        assert_eq!(
            (record.header("a"), record.header("b"), record.header("c")),
            (Some(&b"2"[..]), Some(&b""[..]), None)
        );
        assert_eq!(
            record.headers().collect::<Vec<_>>(),
            [(&b"a"[..], &b"1"[..]), (b"b", b""), (b"a", b"2")]
        );
    }

    #[test]
    fn a_header_without_a_value_is_not_one_with_an_empty_value() {
        let place = Place {
            topic: "t".into(),
            partition: 1,
            offset: 2,
            timestamp: 3,
        };
        let record = Incoming::new(
            place,
            None,
            None,
            [("null", None), ("empty", Some(&b""[..]))].into_iter(),
        );
        assert_eq!(
            record.headers_with_nulls().collect::<Vec<_>>(),
            [(&b"null"[..], None), (b"empty", Some(&b""[..]))]
        );
        assert_eq!(
            (record.header("null"), record.header_at(0)),
            (Some(&b""[..]), &b""[..])
        );
    }
}
