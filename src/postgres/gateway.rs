//! Sessions of sqlx for URLs with parameters that sqlx does not support: `channel_binding=require`,
//! `require_auth`, `sslnegotiation=direct`, `sslsni=0`.
//!
//! ```text
//! sqlx ──Unix socket, this process only──▶ gateway ──TLS, SCRAM-SHA-256-PLUS──▶ Postgres
//! ```
//!
//! The gateway opens each connection with the code of the replication connection, and then copies
//! bytes in both directions. With these settings, every session is therefore authenticated as the
//! URL demands. sqlx cannot use an existing connection, but it can connect to Unix sockets.
//!
//! On Linux the socket has an abstract name, which leaves no file behind. Elsewhere it is in a
//! directory that only the user can access. On both, the gateway checks the peer's credentials and
//! accepts connections from this process alone.

use std::{
    io,
    os::unix::net::UnixListener as StdListener,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use tokio::net::{UnixListener, UnixStream};

use super::{DatabaseSettings, replication};

/// Directory of the socket for each of the settings in use. One per database URL of the process.
static FOLDERS: Mutex<Vec<(DatabaseSettings, PathBuf)>> = Mutex::new(Vec::new());

/// Returns the socket directory for sqlx. Starts the gateway at the first call for these settings.
/// It runs as long as the process.
pub(super) fn directory(settings: &DatabaseSettings) -> PathBuf {
    let mut folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, folder)) = folders.iter().find(|(known, _)| known == settings) {
        return folder.clone();
    }
    match start(settings.clone()) {
        Ok(folder) => {
            folders.push((settings.clone(), folder.clone()));
            folder
        }
        Err(error) => {
            tracing::error!(
                "the gateway for channel_binding and require_auth cannot be started: {error}; \
                 sessions fail until it can"
            );
            PathBuf::from("/nonexistent")
        }
    }
}

fn start(settings: DatabaseSettings) -> io::Result<PathBuf> {
    let id = uuid::Uuid::now_v7().simple();
    let (listener, folder) = listen(&format!("tidings-{id}"), settings.port())?;
    listener.set_nonblocking(true)?;
    // Runs on its own thread, because a runtime of the process may end before the gateway.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("tidings-gateway".into())
        .spawn(move || runtime.block_on(serve(listener, settings)))?;
    Ok(folder)
}

#[cfg(target_os = "linux")]
fn listen(name: &str, port: u16) -> io::Result<(StdListener, PathBuf)> {
    use std::os::linux::net::SocketAddrExt as _;
    let address =
        std::os::unix::net::SocketAddr::from_abstract_name(format!("{name}/.s.PGSQL.{port}"))?;
    // tokio represents an abstract socket as a path that starts with a NUL.
    Ok((
        StdListener::bind_addr(&address)?,
        PathBuf::from(format!("\0{name}")),
    ))
}

#[cfg(not(target_os = "linux"))]
fn listen(name: &str, port: u16) -> io::Result<(StdListener, PathBuf)> {
    use std::os::unix::fs::DirBuilderExt as _;
    let folder = std::env::temp_dir().join(name);
    std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
    Ok((
        StdListener::bind(folder.join(format!(".s.PGSQL.{port}")))?,
        folder,
    ))
}

#[expect(
    clippy::disallowed_methods,
    reason = "each session ends with its client's connection"
)]
async fn serve(listener: StdListener, settings: DatabaseSettings) {
    let Ok(listener) = UnixListener::from_std(listener) else {
        return;
    };
    loop {
        match listener.accept().await {
            Ok((client, _)) if is_own(&client) => {
                let settings = settings.clone();
                tokio::spawn(async move { replication::relay_session(&settings, client).await });
            }
            Ok(_) => tracing::warn!("another process has tried to connect to the gateway: refused"),
            // No file descriptor is available. Wait for one.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    }
}

fn is_own(client: &UnixStream) -> bool {
    client
        .peer_cred()
        .is_ok_and(|peer| peer.pid() == i32::try_from(std::process::id()).ok())
}
