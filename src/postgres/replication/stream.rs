//! The stream itself: frames out of the socket, status updates into it.
//!
//! Layout: PostgreSQL manual, "Streaming Replication Protocol" (XLogData `w`, primary keepalive `k`, standby status update `r`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use super::{ReplicationError, connection::Socket};
use crate::postgres::Lsn;

/// What is read at once at most, bytes: the kernel's receive buffer and some of the sender's, so that one read empties them.
const READ_BYTES: usize = 256 * 1024;

/// A buffer that grew for one large message is given back above this size, bytes.
const KEEP_BYTES: usize = 4 * READ_BYTES;

/// Microseconds from the Unix epoch to Postgres's, 2000-01-01 UTC.
pub(crate) const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// How long a polite end may take: the server notices the closed connection anyway.
const FINISH_WITHIN: Duration = Duration::from_secs(1);

/// One frame of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// A `pgoutput` message, and when the server sent it (microseconds since 2000, the server's clock).
    Data { sent_at: i64, message: &'a [u8] },
    /// The server is alive and stands at `end`; it wants an answer at once if `reply` is set.
    Keepalive { end: Lsn, reply: bool },
}

/// Reads frames. `fill` touches the socket, `next` only the buffer.
pub(crate) struct FrameReader {
    socket: ReadHalf<Box<dyn Socket>>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl FrameReader {
    pub(super) fn new(socket: ReadHalf<Box<dyn Socket>>, already_read: &[u8]) -> Self {
        let mut buffer = vec![0; READ_BYTES.max(already_read.len())];
        buffer[..already_read.len()].copy_from_slice(already_read);
        Self { socket, buffer, start: 0, end: already_read.len() }
    }

    /// Reads once from the socket; the bytes read.
    ///
    /// # Errors
    /// [`ReplicationError::Closed`] at the end of the stream.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn fill(&mut self) -> Result<usize, ReplicationError> {
        self.make_room();
        let read = self.socket.read(&mut self.buffer[self.end..]).await?;
        if read == 0 {
            return Err(ReplicationError::Closed);
        }
        self.end += read;
        Ok(read)
    }

    /// Moves the incomplete message to the front and makes room for the rest of it.
    fn make_room(&mut self) {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let wanted = self.message_len().unwrap_or(0).max(READ_BYTES);
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        } else if self.buffer.len() > KEEP_BYTES && wanted <= READ_BYTES && self.end < READ_BYTES {
            self.buffer.truncate(READ_BYTES);
            self.buffer.shrink_to_fit();
        }
    }

    /// Whole length of the message at the front, once its header is there.
    fn message_len(&self) -> Option<usize> {
        let header = self.buffer[self.start..self.end].get(1..5)?;
        Some(u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize + 1)
    }

    /// The next frame that is wholly in the buffer.
    ///
    /// # Errors
    /// The server's error, the end of the stream, or a frame that breaks the protocol.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, ReplicationError> {
        loop {
            let Some(len) = self.message_len().filter(|len| self.end - self.start >= *len) else { return Ok(None) };
            let (from, to) = (self.start, self.start + len);
            self.start = to;
            match self.buffer[from] {
                b'd' => return frame(&self.buffer[from + 5..to]).map(Some),
                b'E' => {
                    let mut body = bytes::BytesMut::from(&self.buffer[from..to]);
                    return match postgres_protocol::message::backend::Message::parse(&mut body)? {
                        Some(postgres_protocol::message::backend::Message::ErrorResponse(body)) => {
                            Err(ReplicationError::from_response(&body))
                        }
                        _ => Err(ReplicationError::Protocol("an error that cannot be read".into())),
                    };
                }
                // CopyDone, or CommandComplete from a server that shuts down in order.
                b'c' | b'C' => return Err(ReplicationError::Closed),
                // Notices and parameter changes may come at any time.
                b'N' | b'S' => {}
                other => return Err(ReplicationError::Protocol(format!("message `{}` in a stream", char::from(other)))),
            }
        }
    }
}

fn frame(body: &[u8]) -> Result<Frame<'_>, ReplicationError> {
    let word = |at: usize| body.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    match body.first() {
        Some(b'w') => word(17).map(|sent_at| Frame::Data { sent_at: sent_at.cast_signed(), message: &body[25..] }),
        Some(b'k') => word(1).zip(body.get(17)).map(|(end, reply)| Frame::Keepalive { end: Lsn(end), reply: *reply != 0 }),
        _ => None,
    }
    .ok_or_else(|| ReplicationError::Protocol("a replication frame that is neither data nor keepalive".into()))
}

/// Tells the server what is safe.
pub(crate) struct StatusWriter {
    socket: WriteHalf<Box<dyn Socket>>,
}

impl StatusWriter {
    pub(super) fn new(socket: WriteHalf<Box<dyn Socket>>) -> Self {
        Self { socket }
    }

    /// Confirms everything before `safe`; the server may then forget it. `reply` asks for a keepalive at once.
    ///
    /// # Errors
    /// A lost connection.
    pub(crate) async fn confirm(&mut self, safe: Lsn, reply: bool) -> Result<(), ReplicationError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
        let mut out = [0u8; 39];
        out[0] = b'd';
        out[1..5].copy_from_slice(&38u32.to_be_bytes());
        out[5] = b'r';
        for at in [6, 14, 22] {
            out[at..at + 8].copy_from_slice(&safe.0.to_be_bytes());
        }
        out[30..38].copy_from_slice(&(now - POSTGRES_EPOCH_MICROS).to_be_bytes());
        out[38] = u8::from(reply);
        self.socket.write_all(&out).await?;
        Ok(self.socket.flush().await?)
    }

    /// Ends the stream politely, so that the server frees the slot at once.
    pub(crate) async fn finish(mut self) {
        // CopyDone, then Terminate; the connection is closed either way.
        let finishing = async {
            let _ = self.socket.write_all(&[b'c', 0, 0, 0, 4, b'X', 0, 0, 0, 4]).await;
            let _ = self.socket.flush().await;
            let _ = self.socket.shutdown().await;
        };
        let _ = tokio::time::timeout(FINISH_WITHIN, finishing).await;
    }
}
