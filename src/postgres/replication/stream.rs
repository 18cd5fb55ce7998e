//! The stream itself: bytes out of the socket, status updates into it.
//!
//! Layout: PostgreSQL manual, "Streaming Replication Protocol" (standby status update `r`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use super::{
    ReplicationError,
    framing::{Frame, FrameBuffer},
    wire::Socket,
};
use crate::postgres::Lsn;

/// Microseconds from the Unix epoch to Postgres's, 2000-01-01 UTC.
pub(crate) const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// How long a polite end may take: the server notices the closed connection anyway.
const FINISH_WITHIN: Duration = Duration::from_secs(1);

/// Reads frames. `fill` touches the socket, `next` only the buffer.
pub(crate) struct FrameReader {
    socket: ReadHalf<Box<dyn Socket>>,
    buffer: FrameBuffer,
}

impl FrameReader {
    pub(super) fn new(socket: ReadHalf<Box<dyn Socket>>, already_read: &[u8]) -> Self {
        Self {
            socket,
            buffer: FrameBuffer::new(already_read),
        }
    }

    /// Reads once from the socket; the bytes read.
    ///
    /// # Errors
    /// [`ReplicationError::Closed`] at the end of the stream; a message of an impossible length.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn fill(&mut self) -> Result<usize, ReplicationError> {
        let read = self.socket.read(self.buffer.room()?).await?;
        if read == 0 {
            return Err(ReplicationError::Closed);
        }
        self.buffer.filled(read);
        Ok(read)
    }

    /// The next frame that is wholly in the buffer.
    ///
    /// # Errors
    /// The server's error, the end of the stream, or a message that breaks the protocol.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, ReplicationError> {
        self.buffer.next()
    }
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
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
            });
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
            let _ = self
                .socket
                .write_all(&[b'c', 0, 0, 0, 4, b'X', 0, 0, 0, 4])
                .await;
            let _ = self.socket.flush().await;
            let _ = self.socket.shutdown().await;
        };
        let _ = tokio::time::timeout(FINISH_WITHIN, finishing).await;
    }
}
