//! A replication stream: frames read from the socket, status updates written to it.
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

/// Microseconds from the Unix epoch to Postgres's epoch, 2000-01-01 UTC.
pub(crate) const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Timeout of an orderly end. The server detects the closed connection in any case.
const FINISH_WITHIN: Duration = Duration::from_secs(1);

/// Reads frames. `fill` reads from the socket, `next` only from the buffer.
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

    /// Reads once from the socket. Returns the number of bytes.
    ///
    /// # Errors
    ///
    /// Returns [`ReplicationError::Closed`] at the end of the stream, or an error if a message has
    /// an invalid length.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn fill(&mut self) -> Result<usize, ReplicationError> {
        let read = self.socket.read(self.buffer.room()?).await?;
        if read == 0 {
            return Err(ReplicationError::Closed);
        }
        self.buffer.filled(read);
        Ok(read)
    }

    /// Returns the next frame, or `None` if the buffer contains no complete frame.
    ///
    /// # Errors
    ///
    /// Returns the server's error, or an error at the end of the stream or if a message violates
    /// the protocol.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, ReplicationError> {
        self.buffer.next()
    }
}

/// Confirms positions to the server.
pub(crate) struct StatusWriter {
    socket: WriteHalf<Box<dyn Socket>>,
}

impl StatusWriter {
    pub(super) fn new(socket: WriteHalf<Box<dyn Socket>>) -> Self {
        Self { socket }
    }

    /// Confirms everything before `safe`, so that the server may remove it. `reply` requests an
    /// immediate keepalive.
    ///
    /// # Errors
    ///
    /// Returns an error if the connection is lost.
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

    /// Ends the stream in an orderly way, so that the server releases the slot immediately.
    pub(crate) async fn finish(mut self) {
        // CopyDone, then Terminate. The connection is closed in any case.
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
