//! A connection's messages: the socket, what was read from it, and the answers of the simple protocol.

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

/// The rows of one answer as text, SQL null as `None`.
pub(crate) type TextRows = Vec<Vec<Option<String>>>;

/// The socket and what was read from it beyond the last message.
pub(super) struct Wire {
    socket: Box<dyn Socket>,
    read: BytesMut,
    /// Longest message that is accepted at present.
    bytes_max: usize,
}

impl Wire {
    /// A connection that is not authenticated yet.
    pub(super) fn new(socket: Box<dyn Socket>) -> Self {
        Self {
            socket,
            read: BytesMut::with_capacity(8 * 1024),
            bytes_max: HANDSHAKE_BYTES_MAX,
        }
    }

    /// Accepts the longer messages of a server that has accepted the connection.
    pub(super) fn accepted(&mut self) {
        self.bytes_max = ANSWER_BYTES_MAX;
    }

    /// Takes the wire apart: the socket, and what was read from it.
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

    /// Reads to the end of a command: its rows, or its error. After a fatal error the server closes instead of getting ready.
    pub(super) async fn until_ready(&mut self) -> Result<TextRows, ReplicationError> {
        let (mut rows, mut bytes, mut failure) = (Vec::new(), 0, None);
        loop {
            match self.message().await {
                Ok(Message::ReadyForQuery(_)) => return failure.map_or(Ok(rows), Err),
                Ok(Message::ErrorResponse(body)) => {
                    failure = Some(ReplicationError::from_response(&body))
                }
                Ok(Message::DataRow(body)) => {
                    // A row without values counts too: it takes memory.
                    bytes += body.buffer().len() + size_of::<Option<String>>();
                    if bytes > ANSWER_BYTES_MAX {
                        return Err(ReplicationError::Protocol(format!(
                            "an answer of more than {ANSWER_BYTES_MAX} bytes"
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

    /// Waits for the answer to START_REPLICATION. The message library does not know CopyBothResponse (`W`), so its header is read here.
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

/// Takes the message at the front, if it is complete and no longer than `max`.
pub(super) fn parse(read: &mut BytesMut, max: usize) -> Result<Option<Message>, ReplicationError> {
    match message_len(read, max)? {
        Some(len) if read.len() >= len => Ok(Message::parse(read)?),
        // The library would reserve the whole length: a buffer grows with what arrives.
        _ => Ok(None),
    }
}

/// Any bytes as a stream's frames, in pieces whose size the first byte gives, and as messages before the stream: for the fuzz target.
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
            // The client's nonce is random, so this ends at the nonce: what comes before it is decoded.
            let mut scram = postgres_protocol::authentication::sasl::ScramSha256::new(
                b"secret",
                postgres_protocol::authentication::sasl::ChannelBinding::unsupported(),
            );
            let _ = scram.update(body.data());
        }
        _ => {}
    }
}
