//! Message framing of the Postgres protocol: length checks, and the buffer of a stream. Pure.
//!
//! Layout: PostgreSQL manual, "Message Formats" (a tag, a length that includes itself, the body)
//! and "Streaming Replication Protocol" (XLogData `w`, primary keepalive `k`). A length is checked
//! against a limit before any allocation. A buffer grows with the bytes that have arrived rather
//! than with the length that a message announces.

use postgres_protocol::message::backend::Message;

use super::ReplicationError;
use crate::postgres::Lsn;

/// Maximum length of a message before the server has accepted the connection. libpq refuses
/// authentication requests above 2,000 bytes and errors above 30,000.
pub(super) const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;

/// Maximum length of a message, and of a whole result, in response to a command. A result has a few
/// rows; the longest is a timeline's history file.
pub(super) const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Maximum length of a message in a stream. Postgres builds a message in one allocation, which it
/// limits to 1 GiB (`MaxAllocSize`).
const STREAM_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// Maximum number of bytes per read. It covers the kernel's receive buffer and a part of the
/// sender's, so that one read empties them.
const READ_BYTES: usize = 256 * 1024;

/// Size in bytes above which a buffer that grew for one large message is released.
const KEEP_BYTES: usize = 4 * READ_BYTES;

/// A frame of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// A `pgoutput` message and its send time (microseconds since 2000, by the server's clock).
    Data { sent_at: i64, message: &'a [u8] },
    /// The server is alive and its position is `end`. It expects an immediate response if `reply`
    /// is set.
    Keepalive { end: Lsn, reply: bool },
}

/// Returns the length of the message at the start of `bytes`, including its tag, or `None` if its
/// header is incomplete.
///
/// # Errors
///
/// Returns an error if the length does not include itself or exceeds `max`.
pub(super) fn message_len(bytes: &[u8], max: usize) -> Result<Option<usize>, ReplicationError> {
    let Some((&[tag, a, b, c, d], _)) = bytes.split_first_chunk() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    if len < 4 || len >= max {
        let tag = tag.escape_ascii();
        return Err(ReplicationError::Protocol(format!(
            "a message `{tag}` with a length of {len} bytes; 4 to {max} are possible here"
        )));
    }
    Ok(Some(len + 1))
}

/// Bytes of a stream that were read but not decoded yet.
#[derive(Debug)]
pub(crate) struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl FrameBuffer {
    /// Creates a buffer with the bytes that were read after the response that started the stream.
    pub(crate) fn new(already_read: &[u8]) -> Self {
        let mut bytes = vec![0; READ_BYTES.max(already_read.len())];
        bytes[..already_read.len()].copy_from_slice(already_read);
        Self {
            bytes,
            start: 0,
            end: already_read.len(),
        }
    }

    /// Returns room for the next read, which is never empty. Moves an incomplete message to the
    /// front first.
    ///
    /// # Errors
    ///
    /// Returns an error if the message at the front has an invalid length.
    pub(crate) fn room(&mut self) -> Result<&mut [u8], ReplicationError> {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let len = self.front_len()?.unwrap_or(0);
        // At most twice the bytes that have arrived, so that a length alone allocates nothing.
        let wanted = len.min(2 * self.end).max(self.end + 1).max(READ_BYTES);
        if self.bytes.len() < wanted {
            self.bytes.reserve_exact(wanted - self.bytes.len());
            self.bytes.resize(wanted, 0);
        } else if self.bytes.len() > KEEP_BYTES && wanted <= READ_BYTES {
            self.bytes.truncate(READ_BYTES);
            self.bytes.shrink_to_fit();
        }
        Ok(&mut self.bytes[self.end..])
    }

    /// Counts bytes that were read into the [room](Self::room).
    pub(crate) fn filled(&mut self, read: usize) {
        self.end += read;
        assert!(self.end <= self.bytes.len(), "a read stays within its room");
    }

    /// Returns the length of the message at the front, or `None` if its header is incomplete.
    fn front_len(&self) -> Result<Option<usize>, ReplicationError> {
        let front = &self.bytes[self.start..self.end];
        message_len(
            front,
            if front.first() == Some(&b'd') {
                STREAM_BYTES_MAX
            } else {
                ANSWER_BYTES_MAX
            },
        )
    }

    /// Returns the next frame, or `None` if the buffer contains no complete frame.
    ///
    /// # Errors
    ///
    /// Returns the server's error, or an error at the end of the stream or if a message violates
    /// the protocol.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, ReplicationError> {
        loop {
            let Some(len) = self
                .front_len()?
                .filter(|len| self.end - self.start >= *len)
            else {
                return Ok(None);
            };
            let (from, to) = (self.start, self.start + len);
            self.start = to;
            match self.bytes[from] {
                b'd' => return frame(&self.bytes[from + 5..to]).map(Some),
                b'E' => return Err(server_error(&self.bytes[from..to])),
                // CopyDone, or CommandComplete from a server that shuts down in an orderly way.
                b'c' | b'C' => return Err(ReplicationError::Closed),
                // Notices and parameter changes may arrive at any time.
                b'N' | b'S' => {}
                other => {
                    return Err(ReplicationError::Protocol(format!(
                        "message `{}` in a stream",
                        other.escape_ascii()
                    )));
                }
            }
        }
    }

    /// Returns the number of allocated bytes.
    #[cfg(any(test, fuzzing))]
    pub(super) fn allocated(&self) -> usize {
        self.bytes.capacity()
    }
}

fn frame(body: &[u8]) -> Result<Frame<'_>, ReplicationError> {
    let word = |at: usize| {
        body.get(at..at + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u64::from_be_bytes)
    };
    match body.first() {
        Some(b'w') => word(17).map(|sent_at| Frame::Data {
            sent_at: sent_at.cast_signed(),
            message: &body[25..],
        }),
        Some(b'k') => word(1)
            .zip(body.get(17))
            .map(|(end, reply)| Frame::Keepalive {
                end: Lsn(end),
                reply: *reply != 0,
            }),
        _ => None,
    }
    .ok_or_else(|| {
        ReplicationError::Protocol("a replication frame that is neither data nor keepalive".into())
    })
}

fn server_error(message: &[u8]) -> ReplicationError {
    match Message::parse(&mut bytes::BytesMut::from(message)) {
        Ok(Some(Message::ErrorResponse(body))) => ReplicationError::from_response(&body),
        _ => ReplicationError::Protocol("an error response that cannot be decoded".into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        [
            &[tag],
            &(u32::try_from(body.len()).expect("short") + 4).to_be_bytes()[..],
            body,
        ]
        .concat()
    }

    fn data(payload: &[u8]) -> Vec<u8> {
        message(b'd', &[b"w", &[0; 24][..], payload].concat())
    }

    /// Feeds bytes in pieces. Returns the frames, the error and the largest allocation.
    fn feed(bytes: &[u8], piece: usize) -> (Vec<Vec<u8>>, Option<String>, usize) {
        let (mut buffer, mut frames, mut most) = (FrameBuffer::new(&[]), Vec::new(), 0);
        for part in bytes.chunks(piece) {
            let mut part = part;
            while !part.is_empty() {
                let room = match buffer.room() {
                    Ok(room) => room,
                    Err(error) => return (frames, Some(error.to_string()), most),
                };
                let taken = part.len().min(room.len());
                room[..taken].copy_from_slice(&part[..taken]);
                buffer.filled(taken);
                part = &part[taken..];
                most = most.max(buffer.allocated());
                loop {
                    match buffer.next() {
                        Ok(Some(Frame::Data { message, .. })) => frames.push(message.to_vec()),
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(error) => return (frames, Some(error.to_string()), most),
                    }
                }
            }
        }
        (frames, None, most)
    }

    #[test]
    fn a_length_that_no_message_has_is_an_error_before_anything_is_allocated_for_it() {
        let lengths = [0u32, 1, 3, 0x4000_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX];
        for (tag, length) in lengths
            .into_iter()
            .flat_map(|length| [(b'd', length), (b'E', length), (b'N', length), (0, length)])
        {
            let mut bytes = [&[tag][..], &length.to_be_bytes()].concat();
            bytes.extend([b'x'; 100_000]);
            for piece in [1, 5, 7, 100_000] {
                let (frames, error, most) = feed(&bytes, piece);
                let error =
                    error.unwrap_or_else(|| panic!("{tag} {length:x} in pieces of {piece}"));
                assert!(
                    error.contains("a length of") && frames.is_empty() && most <= READ_BYTES,
                    "{error}: {most} bytes"
                );
            }
        }
        let (_, error, most) = feed(&[&b"E\x01\x00\x00\x01"[..], &[b'x'; 1000]].concat(), 100);
        assert!(error.is_some_and(|error| error.contains("a length of")) && most <= READ_BYTES);
    }

    #[test]
    fn a_legal_large_length_grows_the_buffer_with_what_arrives_and_no_further() {
        let mut bytes = b"d\x3f\xff\xff\xff".to_vec();
        bytes.resize(3 * READ_BYTES, b'x');
        let (frames, error, most) = feed(&bytes, 10_000);
        assert_eq!((frames.len(), error), (0, None));
        assert!(most <= 2 * bytes.len(), "{most} bytes for {}", bytes.len());
    }

    #[test]
    fn a_large_row_comes_whole_and_its_memory_is_given_back() {
        let row: Vec<u8> = (0..5 * KEEP_BYTES).map(|n| n as u8).collect();
        let mut buffer = FrameBuffer::new(&data(&row));
        assert!(matches!(buffer.next(), Ok(Some(Frame::Data { message, .. })) if message == row));
        let _ = buffer.room().expect("room");
        assert_eq!(buffer.allocated(), READ_BYTES);
    }

    #[test]
    fn empty_and_foreign_messages_are_errors() {
        for (bytes, expected) in [
            (message(b'd', b""), "neither data nor keepalive"),
            (message(b'd', b"w"), "neither data nor keepalive"),
            (message(b'd', b"k1234567"), "neither data nor keepalive"),
            (message(b'Q', b""), "message `Q` in a stream"),
            (message(0xff, b""), "message `\\xff` in a stream"),
            (message(b'E', b"\x01"), "cannot be decoded"),
        ] {
            let error = feed(&bytes, 3).1.expect("an error");
            assert!(
                error.contains(expected) || error.contains("Postgres"),
                "{error}"
            );
        }
    }

    proptest! {
        #[test]
        fn frames_come_back_as_they_were_sent(
            rows in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..2_000), 0..20),
            piece in 1usize..3_000,
        ) {
            let mut bytes: Vec<u8> = message(b'N', b"notice");
            rows.iter().for_each(|row| bytes.extend(data(row)));
            let (frames, error, _) = feed(&bytes, piece);
            prop_assert_eq!((frames, error), (rows, None));
        }
    }
}
