//! Messages of a connection: the socket, its read buffer, and the responses of the simple protocol.

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    ReplicationError,
    framing::{ANSWER_BYTES_MAX, HANDSHAKE_BYTES_MAX, message_len},
};

/// The transport of a connection: TCP, TLS over it, or a Unix socket.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// The rows of one result as text, with `None` for an SQL null.
pub(crate) type TextRows = Vec<Vec<Option<String>>>;

/// The socket, and the bytes that were read after the last message.
pub(super) struct Wire {
    socket: Box<dyn Socket>,
    read: BytesMut,
    /// Maximum length of a message, which depends on the state of the connection.
    bytes_max: usize,
}

impl Wire {
    /// Creates the wire of a connection that is not authenticated yet.
    pub(super) fn new(socket: Box<dyn Socket>) -> Self {
        Self {
            socket,
            read: BytesMut::with_capacity(8 * 1024),
            bytes_max: HANDSHAKE_BYTES_MAX,
        }
    }

    /// Raises the maximum length of messages after the server has accepted the connection.
    pub(super) fn accepted(&mut self) {
        self.bytes_max = ANSWER_BYTES_MAX;
    }

    /// Returns the socket and the bytes that were read from it.
    pub(super) fn into_parts(self) -> (Box<dyn Socket>, BytesMut) {
        (self.socket, self.read)
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), ReplicationError> {
        self.socket.write_all(bytes).await?;
        Ok(self.socket.flush().await?)
    }

    pub(super) async fn message(&mut self) -> Result<Message, ReplicationError> {
        loop {
            if let Some(message) = parse(&mut self.read, self.bytes_max)? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), ReplicationError> {
        match self.socket.read_buf(&mut self.read).await? {
            0 => Err(ReplicationError::Closed),
            _ => Ok(()),
        }
    }

    /// Reads to the end of a command. Returns its rows or its error. After a fatal error, the
    /// server closes the connection and sends no ReadyForQuery.
    pub(super) async fn until_ready(&mut self) -> Result<TextRows, ReplicationError> {
        let (mut rows, mut bytes, mut failure) = (Vec::new(), 0, None);
        loop {
            match self.message().await {
                Ok(Message::ReadyForQuery(_)) => return failure.map_or(Ok(rows), Err),
                Ok(Message::ErrorResponse(body)) => {
                    failure = Some(ReplicationError::from_response(&body))
                }
                Ok(Message::DataRow(body)) => {
                    // A row without values is counted too, because it needs memory.
                    bytes += body.buffer().len() + size_of::<Option<String>>();
                    if bytes > ANSWER_BYTES_MAX {
                        return Err(ReplicationError::Protocol(format!(
                            "a result of more than {ANSWER_BYTES_MAX} bytes"
                        )));
                    }
                    let text = |range: std::ops::Range<usize>| {
                        String::from_utf8_lossy(&body.buffer()[range]).into_owned()
                    };
                    rows.push(body.ranges().map(|range| Ok(range.map(text))).collect()?);
                }
                Ok(_) => {}
                Err(lost) => return Err(failure.unwrap_or(lost)),
            }
        }
    }

    /// Waits for the response to START_REPLICATION. postgres-protocol does not support
    /// CopyBothResponse (`W`), so its header is parsed here.
    pub(super) async fn copy_both(&mut self) -> Result<(), ReplicationError> {
        loop {
            if self.read.first() == Some(&b'W') {
                if let Some(len) =
                    message_len(&self.read, self.bytes_max)?.filter(|len| self.read.len() >= *len)
                {
                    let _ = self.read.split_to(len);
                    return Ok(());
                }
                self.fill().await?;
                continue;
            }
            match parse(&mut self.read, self.bytes_max)? {
                Some(Message::ErrorResponse(body)) => {
                    return Err(ReplicationError::from_response(&body));
                }
                Some(Message::ReadyForQuery(_)) => {
                    return Err(ReplicationError::Protocol(
                        "START_REPLICATION did not start a stream".into(),
                    ));
                }
                Some(_) => {}
                None => self.fill().await?,
            }
        }
    }
}

/// Removes and returns the message at the front, or `None` if it is incomplete.
pub(super) fn parse(read: &mut BytesMut, max: usize) -> Result<Option<Message>, ReplicationError> {
    match message_len(read, max)? {
        Some(len) if read.len() >= len => Ok(Message::parse(read)?),
        // The library would reserve the full length. Here, a buffer grows with the bytes that
        // arrive.
        _ => Ok(None),
    }
}

/// Parses arbitrary bytes as frames of a stream, in pieces whose size is in the first byte, and as
/// messages before the stream. For the fuzz target.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_framing(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else {
        return;
    };
    let mut buffer = super::framing::FrameBuffer::new(&[]);
    let before = buffer.allocated();
    'stream: for part in bytes.chunks(usize::from(*piece) + 1) {
        let Ok(room) = buffer.room() else { break };
        let taken = part.len().min(room.len());
        room[..taken].copy_from_slice(&part[..taken]);
        buffer.filled(taken);
        loop {
            match buffer.next() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => break 'stream,
            }
        }
    }
    assert!(
        buffer.allocated() <= before + 2 * bytes.len(),
        "{} bytes of memory for {}",
        buffer.allocated(),
        bytes.len()
    );
    let mut read = BytesMut::from(bytes);
    while let Ok(Some(message)) = parse(&mut read, HANDSHAKE_BYTES_MAX) {
        fuzz_message(&message);
    }
}

#[cfg(any(test, fuzzing))]
fn fuzz_message(message: &Message) {
    match message {
        Message::ErrorResponse(body) => drop(ReplicationError::from_response(body)),
        Message::DataRow(body) => drop(body.ranges().collect::<Vec<_>>()),
        Message::AuthenticationSasl(body) => drop(
            body.mechanisms()
                .map(|name| Ok(name.to_owned()))
                .collect::<Vec<_>>(),
        ),
        Message::AuthenticationSaslContinue(body) => {
            // The client's nonce is random, so decoding always ends at the check of the nonce.
            let mut scram = postgres_protocol::authentication::sasl::ScramSha256::new(
                b"secret",
                postgres_protocol::authentication::sasl::ChannelBinding::unsupported(),
            );
            let _ = scram.update(body.data());
        }
        _ => {}
    }
}
