//! A connection in replication mode: start-up, simple queries, and the change into streaming.

use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::{backend::Message, frontend};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, UnixStream, lookup_host},
    time::timeout,
};

use super::{
    ReplicationError, auth,
    stream::{FrameReader, StatusWriter},
    tls,
};
use crate::postgres::{Lsn, Settings, SslMode};

/// The kernel's receive buffer, bytes. Small on purpose: with the walsender's send buffer it bounds what is under way, and
/// a reader that lets it fill gets it whole in one read.
const RECEIVE_BUFFER_BYTES: u32 = 64 * 1024;

/// How long the server may take to answer a command that does not wait for other transactions.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// When the peer of a silent connection is probed, how often, and after how many probes it counts as lost: half a minute in
/// all. A stream that waits for the server's next message would not notice otherwise before its own time limit.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 4);

/// How long sent bytes may stay unacknowledged by the peer's kernel.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// What a connection is made of: TCP, TLS over it, or a Unix socket.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// A connection in replication mode that is not streaming.
pub(crate) struct Connection {
    wire: Wire,
}

/// The socket and what was read from it beyond the last message.
pub(super) struct Wire {
    socket: Box<dyn Socket>,
    read: BytesMut,
}

impl Connection {
    /// Connects with `replication=database`, so that the walsender also answers SQL.
    ///
    /// # Errors
    /// When the server cannot be reached within the settings' `connect_timeout`, TLS fails, or the role is refused.
    pub(crate) async fn open(settings: &Settings, application_name: &str) -> Result<Self, ReplicationError> {
        let address =
            settings.socket_dir().map_or_else(|| format!("{}:{}", settings.host(), settings.port()), |dir| dir.display().to_string());
        match timeout(settings.connect_timeout(), Self::start(settings, application_name, &address)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ReplicationError::Connect { address, source: std::io::ErrorKind::TimedOut.into() }),
        }
    }

    async fn start(settings: &Settings, application_name: &str, address: &str) -> Result<Self, ReplicationError> {
        let socket = open_socket(settings, address).await?;
        let mut wire = Wire { socket, read: BytesMut::with_capacity(8 * 1024) };
        let mut out = BytesMut::new();
        let fixed = [
            ("user", settings.user()),
            ("database", settings.database()),
            ("replication", "database"),
            ("application_name", application_name),
            ("client_encoding", "UTF8"),
            // The stream's text forms must not depend on the role's settings.
            ("DateStyle", "ISO"),
            ("TimeZone", "UTC"),
        ];
        let options = settings.options().iter().map(|(name, value)| (name.as_str(), value.as_str()));
        frontend::startup_message(fixed.into_iter().chain(options), &mut out)?;
        wire.send(&out).await?;
        auth::authenticate(&mut wire, settings.user(), settings.password()).await?;
        wire.until_ready().await?;
        Ok(Self { wire })
    }

    /// Runs one command by the simple protocol; the rows as text, SQL null as `None`.
    ///
    /// # Errors
    /// The server's error, no answer in time, or a lost connection.
    pub(crate) async fn query(&mut self, command: &str) -> Result<Vec<Vec<Option<String>>>, ReplicationError> {
        timeout(ANSWER_WITHIN, self.query_unbounded(command)).await.unwrap_or(Err(ReplicationError::Unanswered("a result")))
    }

    /// The same for a command that may wait for transactions of others. The caller must bound or watch the wait.
    ///
    /// # Errors
    /// The server's error, or a lost connection.
    pub(crate) async fn query_unbounded(&mut self, command: &str) -> Result<Vec<Vec<Option<String>>>, ReplicationError> {
        let mut out = BytesMut::new();
        frontend::query(command, &mut out)?;
        self.wire.send(&out).await?;
        self.wire.until_ready().await
    }

    /// Starts streaming from `from` (or from where the slot stands, if that is further).
    ///
    /// # Errors
    /// The server's error (slot missing or active), no answer in time, or a lost connection.
    pub(crate) async fn stream(self, slot: &str, publication: &str, from: Lsn) -> Result<(FrameReader, StatusWriter), ReplicationError> {
        let starting = timeout(ANSWER_WITHIN, self.start_replication(slot, publication, from));
        starting.await.unwrap_or(Err(ReplicationError::Unanswered("a stream")))
    }

    async fn start_replication(
        mut self,
        slot: &str,
        publication: &str,
        from: Lsn,
    ) -> Result<(FrameReader, StatusWriter), ReplicationError> {
        let command = format!(
            "START_REPLICATION SLOT \"{slot}\" LOGICAL {from} (proto_version '1', publication_names '\"{}\"', binary 'true')",
            publication.replace('"', "\"\"").replace('\'', "''"),
        );
        let mut out = BytesMut::new();
        frontend::query(&command, &mut out)?;
        self.wire.send(&out).await?;
        self.wire.copy_both().await?;
        let (reader, writer) = tokio::io::split(self.wire.socket);
        Ok((FrameReader::new(reader, &self.wire.read), StatusWriter::new(writer)))
    }
}

async fn open_socket(settings: &Settings, address: &str) -> Result<Box<dyn Socket>, ReplicationError> {
    let failed = |source| ReplicationError::Connect { address: address.to_owned(), source };
    if let Some(dir) = settings.socket_dir() {
        let path = dir.join(format!(".s.PGSQL.{}", settings.port()));
        return Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?));
    }
    let mut tcp = open_tcp(settings).await.map_err(failed)?;
    if settings.ssl_mode() == SslMode::Disable {
        return Ok(Box::new(tcp));
    }
    let mut out = BytesMut::new();
    frontend::ssl_request(&mut out);
    tcp.write_all(&out).await?;
    match tcp.read_u8().await? {
        b'S' => {
            let name = ServerName::try_from(settings.host().to_owned()).map_err(|error| ReplicationError::Tls(error.to_string()))?;
            let tls = tls::connector(settings)?.connect(name, tcp).await;
            Ok(Box::new(tls.map_err(|error| ReplicationError::Tls(error.to_string()))?))
        }
        _ if settings.ssl_mode() == SslMode::Prefer => Ok(Box::new(tcp)),
        _ => Err(ReplicationError::Tls("the server offers no TLS: set ssl = on there, or sslmode=disable here".into())),
    }
}

async fn open_tcp(settings: &Settings) -> std::io::Result<tokio::net::TcpStream> {
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for address in lookup_host((settings.host(), settings.port())).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        socket.set_nodelay(true)?;
        match socket.connect(address).await {
            Ok(stream) => {
                watch_peer(&stream)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Has the kernel notice a peer that is lost without a word.
fn watch_peer(stream: &tokio::net::TcpStream) -> std::io::Result<()> {
    let (time, interval, retries) = KEEPALIVE;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

impl Wire {
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), ReplicationError> {
        self.socket.write_all(bytes).await?;
        Ok(self.socket.flush().await?)
    }

    pub(super) async fn message(&mut self) -> Result<Message, ReplicationError> {
        loop {
            if let Some(message) = Message::parse(&mut self.read)? {
                return Ok(message);
            }
            if self.socket.read_buf(&mut self.read).await? == 0 {
                return Err(ReplicationError::Closed);
            }
        }
    }

    /// Reads to the end of a command: its rows, or its error. After a fatal error the server closes instead of getting ready.
    async fn until_ready(&mut self) -> Result<Vec<Vec<Option<String>>>, ReplicationError> {
        let (mut rows, mut failure) = (Vec::new(), None);
        loop {
            match self.message().await {
                Ok(Message::ReadyForQuery(_)) => return failure.map_or(Ok(rows), Err),
                Ok(Message::ErrorResponse(body)) => failure = Some(ReplicationError::from_response(&body)),
                Ok(Message::DataRow(body)) => {
                    let text = |range: std::ops::Range<usize>| String::from_utf8_lossy(&body.buffer()[range]).into_owned();
                    rows.push(body.ranges().map(|range| Ok(range.map(text))).collect()?);
                }
                Ok(_) => {}
                Err(lost) => return Err(failure.unwrap_or(lost)),
            }
        }
    }

    /// Waits for the answer to START_REPLICATION. CopyBothResponse (`W`) is not known to the message library, so the header is read here.
    async fn copy_both(&mut self) -> Result<(), ReplicationError> {
        loop {
            if self.read.len() >= 5 && self.read[0] == b'W' {
                let len = u32::from_be_bytes([self.read[1], self.read[2], self.read[3], self.read[4]]) as usize + 1;
                if self.read.len() >= len {
                    let _ = self.read.split_to(len);
                    return Ok(());
                }
            } else if !self.read.is_empty() && self.read[0] != b'W' {
                match self.message().await? {
                    Message::ErrorResponse(body) => return Err(ReplicationError::from_response(&body)),
                    Message::ReadyForQuery(_) => return Err(ReplicationError::Protocol("START_REPLICATION did not start a stream".into())),
                    _ => continue,
                }
            }
            if self.socket.read_buf(&mut self.read).await? == 0 {
                return Err(ReplicationError::Closed);
            }
        }
    }
}
