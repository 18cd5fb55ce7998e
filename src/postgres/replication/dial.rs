//! Opens an authenticated connection: socket, TLS, startup message, authentication. The replication
//! connection and the [gateway](crate::postgres::gateway) both use it, so that the URL's
//! protections apply to both.

use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UnixStream, lookup_host},
    time::timeout,
};

use super::{
    ReplicationError, auth, binding, tls,
    wire::{Socket, Wire},
};
use crate::postgres::{
    DatabaseSettings, SslMode,
    settings::{Method, SslNegotiation},
};

/// Size of the kernel's receive buffer, in bytes. Small on purpose: together with the walsender's
/// send buffer it limits the data in flight, and a reader that lets it fill empties it with one
/// read.
const RECEIVE_BUFFER_BYTES: u32 = 64 * 1024;

/// Keepalive of an idle connection: time before the first probe, interval of the probes, and number
/// of unanswered probes after which the peer counts as lost, half a minute in total. Without it, a
/// stream that waits for the server's next message would detect a lost peer only at its own time
/// limit.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 4);

/// Maximum time that sent bytes remain unacknowledged by the peer's kernel.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Protection of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Channel {
    /// The connection uses TLS, whether or not the peer is the server.
    pub(crate) encrypted: bool,
    /// The server's certificate was verified.
    pub(crate) verified: bool,
    /// The certificate's hash for channel binding, or `None` if its signature algorithm defines
    /// none.
    pub(crate) binding: Option<Vec<u8>>,
}

/// An authenticated connection whose server has not sent its parameters yet.
pub(super) struct Dialled {
    pub(super) wire: Wire,
    #[cfg_attr(
        not(feature = "cli"),
        expect(dead_code, reason = "for `tidings check`")
    )]
    pub(super) channel: Channel,
    #[cfg_attr(
        not(feature = "cli"),
        expect(dead_code, reason = "for `tidings check`")
    )]
    pub(super) method: Method,
}

/// Connects, sends the startup message and authenticates.
///
/// # Errors
///
/// Returns an error if the server is unreachable within the settings' `connect_timeout`, TLS fails,
/// the server refuses the role, or it requests an authentication method that the settings exclude.
pub(super) async fn dial(
    settings: &DatabaseSettings,
    startup: &[u8],
) -> Result<Dialled, ReplicationError> {
    let address = settings.address();
    let dialling = async {
        let (socket, channel) = open_socket(settings, &address).await?;
        let mut wire = Wire::new(socket);
        wire.send(startup).await?;
        let method = auth::authenticate(&mut wire, settings, &channel).await?;
        wire.accepted();
        Ok(Dialled {
            wire,
            channel,
            method,
        })
    };
    match timeout(settings.connect_timeout(), dialling).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ReplicationError::Connect {
            address: address.clone(),
            source: std::io::ErrorKind::TimedOut.into(),
        }),
    }
}

/// Connects once to determine the authentication method of the role and the protection of the
/// connection.
///
/// # Errors
///
/// Returns the error of a connection with these settings.
#[cfg(feature = "cli")]
pub(crate) async fn probe(
    settings: &DatabaseSettings,
) -> Result<(Method, Channel), ReplicationError> {
    let mut startup = BytesMut::new();
    let parameters = [
        ("user", settings.user()),
        ("database", settings.database()),
        ("application_name", "tidings check"),
    ];
    frontend::startup_message(parameters, &mut startup)?;
    let Dialled {
        mut wire,
        channel,
        method,
    } = dial(settings, &startup).await?;
    let mut end = BytesMut::new();
    frontend::terminate(&mut end);
    let _ = wire.send(&end).await;
    Ok((method, channel))
}

async fn open_socket(
    settings: &DatabaseSettings,
    address: &str,
) -> Result<(Box<dyn Socket>, Channel), ReplicationError> {
    let failed = |source| ReplicationError::Connect {
        address: address.to_owned(),
        source,
    };
    if let Some(dir) = settings.socket_dir() {
        let path = dir.join(format!(".s.PGSQL.{}", settings.port()));
        return Ok((
            Box::new(UnixStream::connect(path).await.map_err(failed)?),
            Channel::default(),
        ));
    }
    let mut tcp = open_tcp(settings).await.map_err(failed)?;
    if settings.ssl_mode() == SslMode::Disable {
        return Ok((Box::new(tcp), Channel::default()));
    }
    if settings.ssl_negotiation() == SslNegotiation::Direct {
        return encrypt(settings, address, tcp).await;
    }
    let mut out = BytesMut::new();
    frontend::ssl_request(&mut out);
    tcp.write_all(&out).await.map_err(failed)?;
    match tcp.read_u8().await.map_err(failed)? {
        b'S' => encrypt(settings, address, tcp).await,
        b'N' if settings.ssl_mode() == SslMode::Prefer => Ok((Box::new(tcp), Channel::default())),
        b'N' => Err(ReplicationError::Tls(format!(
            "the server at {address} does not offer TLS: set ssl = on there, or sslmode=disable \
             here"
        ))),
        other => Err(ReplicationError::Protocol(format!(
            "`{}` in response to a request for TLS",
            other.escape_ascii()
        ))),
    }
}

async fn encrypt(
    settings: &DatabaseSettings,
    address: &str,
    tcp: TcpStream,
) -> Result<(Box<dyn Socket>, Channel), ReplicationError> {
    let name = ServerName::try_from(settings.host().to_owned())
        .map_err(|error| ReplicationError::Tls(error.to_string()))?;
    let tls = tls::connector(settings)?.connect(name, tcp).await;
    let tls = tls.map_err(|source| ReplicationError::Handshake {
        address: address.to_owned(),
        source,
    })?;
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let channel = Channel {
        encrypted: true,
        verified: matches!(settings.ssl_mode(), SslMode::VerifyCa | SslMode::VerifyFull),
        binding: certificate.and_then(|certificate| binding::tls_server_end_point(certificate)),
    };
    Ok((Box::new(tls), channel))
}

async fn open_tcp(settings: &DatabaseSettings) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for address in lookup_host((settings.host(), settings.port())).await? {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        socket.set_nodelay(true)?;
        match socket.connect(address).await {
            Ok(stream) => {
                if settings.keepalives() {
                    watch_peer(&stream)?;
                }
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Makes the kernel detect a peer that is lost without closing the connection.
fn watch_peer(stream: &TcpStream) -> std::io::Result<()> {
    let (time, interval, retries) = KEEPALIVE;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_keepalive(
        &socket2::TcpKeepalive::new()
            .with_time(time)
            .with_interval(interval)
            .with_retries(retries),
    )?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}
