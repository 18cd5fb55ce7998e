//! Accept loop of the admin server, with bounds on connections.
//!
//! The port has no authentication, so any client may open connections and leave them idle. Each
//! connection serves one request, has a short time to send it, and is closed after a bounded time.
//! When the limit is reached, the oldest connection is closed for a new one. A probe sends its
//! request at once, so it receives its response before its connection could become the oldest.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Maximum size of a request head. hyper accepts no buffer smaller than 8 KiB.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Pause after a failed accept, for instance because no file descriptor is free.
const REFUSED: Duration = Duration::from_millis(100);

/// Time for which running responses may continue after shutdown.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Bounds on connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Maximum number of open connections. Probes and scrapers need only a few. The limit is a
    /// quarter of the smallest usual descriptor limit (256), so enough descriptors remain for the
    /// relay.
    pub(super) connections_max: usize,
    /// Time limit for the head of a request. Probes send it at once.
    pub(super) head: Duration,
    /// Time limit for a whole connection. Prometheus aborts a scrape after 10 s by default.
    pub(super) connection: Duration,
}

impl Limits {
    /// Limits of a server that also serves pages with event streams. A browser opens a stream again
    /// after it was closed, so the limit only bounds a client that does not read.
    pub(super) fn of_pages() -> Self {
        Self {
            connection: Duration::from_secs(600),
            ..Self::default()
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 64,
            head: Duration::from_secs(5),
            connection: Duration::from_secs(30),
        }
    }
}

/// Serves requests until `shutdown` is cancelled.
pub(super) async fn serve(
    listener: TcpListener,
    routes: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let mut open = Open::default();
    let mut is_refusing = false;
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = open.tasks.join_next_with_id() => {
                open.forget(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                is_refusing = false;
                open.add(
                    answer(stream, routes.clone(), limits),
                    limits.connections_max,
                );
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if !std::mem::replace(&mut is_refusing, true) {
                    tracing::warn!(%error, "the admin server cannot accept a connection; retrying");
                }
                open.close_oldest();
                sleep(REFUSED).await;
            }
        }
    }
    drop(listener);
    let _ = timeout(LAST_ANSWERS, async {
        while open.tasks.join_next().await.is_some() {}
    })
    .await;
}

/// Open connections, the oldest first.
#[derive(Default)]
struct Open {
    tasks: JoinSet<()>,
    oldest_first: VecDeque<AbortHandle>,
}

impl Open {
    fn add(
        &mut self,
        connection: impl Future<Output = ()> + Send + 'static,
        connections_max: usize,
    ) {
        while self.oldest_first.len() >= connections_max {
            self.close_oldest();
        }
        self.oldest_first.push_back(self.tasks.spawn(connection));
    }

    fn close_oldest(&mut self) {
        if let Some(oldest) = self.oldest_first.pop_front() {
            oldest.abort();
        }
    }

    fn forget(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
        self.oldest_first.retain(|connection| connection.id() != id);
    }
}

/// Serves the single request of a connection.
async fn answer(stream: TcpStream, routes: Router, limits: Limits) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    // An error only concerns this client: it closed the connection or was too slow.
    let _ = timeout(limits.connection, connection).await;
}

/// Returns `true` if the client closed the connection before it was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn serving(limits: Limits) -> (std::net::SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (address, shutdown) = (
            listener.local_addr().expect("an address"),
            CancellationToken::new(),
        );
        let routes = Router::new().route("/", axum::routing::get(async || "hello"));
        tokio::spawn(serve(listener, routes, limits, shutdown.clone()));
        (address, shutdown)
    }

    async fn get(address: std::net::SocketAddr, more: &str) -> String {
        let mut stream = TcpStream::connect(address)
            .await
            .expect("the server listens");
        let request = format!("GET / HTTP/1.1\r\nhost: x\r\n{more}\r\n");
        stream
            .write_all(request.as_bytes())
            .await
            .expect("the server reads");
        let mut answer = Vec::new();
        stream
            .read_to_end(&mut answer)
            .await
            .expect("the server responds and closes");
        String::from_utf8(answer).expect("text")
    }

    fn unhurried() -> Limits {
        Limits {
            head: Duration::from_secs(600),
            connection: Duration::from_secs(600),
            ..Limits::default()
        }
    }

    #[tokio::test]
    async fn a_probe_is_answered_however_many_idle_and_half_asked_connections_are_open() {
        let (address, _shutdown) = serving(Limits {
            connections_max: 8,
            ..unhurried()
        })
        .await;
        let mut idle = Vec::new();
        for number in 0..100 {
            let mut stream = TcpStream::connect(address)
                .await
                .expect("the server listens");
            if number % 2 == 0 {
                stream
                    .write_all(b"GET / HTT")
                    .await
                    .expect("the server accepts the bytes");
            }
            idle.push(stream);
            if number % 10 == 0 {
                assert!(get(address, "").await.ends_with("hello"));
            }
        }
        assert!(get(address, "").await.ends_with("hello"));
        // The read fails or returns 0 bytes, depending on whether unread bytes were left at the
        // close.
        let ended = idle[0].read(&mut [0; 1]).await;
        assert!(
            ended.is_err() || ended.is_ok_and(|count| count == 0),
            "the oldest connection was closed"
        );
    }

    #[tokio::test]
    async fn a_client_that_sends_nothing_or_too_slowly_or_too_much_is_let_go() {
        let short = Duration::from_millis(50);
        let (address, _shutdown) = serving(Limits {
            head: short,
            ..unhurried()
        })
        .await;
        for sent in ["", "GET / HTTP/1.1\r\nhost"] {
            let mut stream = TcpStream::connect(address)
                .await
                .expect("the server listens");
            stream
                .write_all(sent.as_bytes())
                .await
                .expect("the server accepts the bytes");
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        let (address, _shutdown) = serving(unhurried()).await;
        let mut stream = TcpStream::connect(address)
            .await
            .expect("the server listens");
        let large = format!(
            "GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
            "y".repeat(2 * HEAD_BYTES_MAX)
        );
        let _ = stream.write_all(large.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!String::from_utf8_lossy(&answer).contains("hello"));
        assert!(
            get(address, "connection: keep-alive\r\n")
                .await
                .contains("connection: close")
        );
    }
}
