//! Listener and routes of the admin server.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::connections::{self, Limits};
use crate::health::Health;
use crate::relay::RelayMetrics;

/// Error of starting the admin server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The address cannot be bound.
    #[error(
        "cannot listen on {address} for health and metrics: {source}; {}",
        remedy(source)
    )]
    Listen {
        /// The address.
        address: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

/// Admin server with an open listener.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Binds `host:port`. Port 0 selects any free port.
    ///
    /// # Errors
    ///
    /// Returns [`AdminError::Listen`], which names the setting to change.
    pub async fn bind(address: &str) -> Result<Self, AdminError> {
        let failed = |source| AdminError::Listen {
            address: address.to_owned(),
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Returns the bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves requests until `shutdown` is cancelled.
    pub async fn serve(self, observer: RelayMetrics, shutdown: CancellationToken) {
        self.serve_with(observer, String::new, None, shutdown).await;
    }

    /// Serves like [`serve`](Self::serve), with additional metrics of the process (OpenMetrics text
    /// without its end mark) and the pages of the console.
    pub(crate) async fn serve_with(
        self,
        observer: RelayMetrics,
        of_process: impl Fn() -> String + Send + Sync + 'static,
        pages: Option<Router>,
        shutdown: CancellationToken,
    ) {
        let health = Health::new().relay(&observer);
        // The relay's metrics come last, because their text ends with the end mark.
        let metrics = move || of_process() + &observer.metrics_text();
        let limits = match pages {
            Some(_) => Limits::of_pages(),
            None => Limits::default(),
        };
        let routes = routes(&health, Arc::new(metrics)).merge(pages.unwrap_or_default());
        connections::serve(self.listener, routes, limits, shutdown).await;
    }

    /// Serves the health and the metrics of another command.
    pub(crate) async fn serve_metrics(
        self,
        health: Health,
        metrics: impl Fn() -> String + Send + Sync + 'static,
        shutdown: CancellationToken,
    ) {
        self.serve_shown(health, Arc::new(metrics), shutdown).await;
    }

    /// Serves the pages of the console alone.
    pub(crate) async fn serve_console(self, pages: Router, shutdown: CancellationToken) {
        let to_console = get(async || Redirect::temporary("/console"));
        let routes = Router::new().route("/", to_console).merge(pages);
        connections::serve(self.listener, routes, Limits::of_pages(), shutdown).await;
    }

    async fn serve_shown(self, health: Health, metrics: Metrics, shutdown: CancellationToken) {
        connections::serve(
            self.listener,
            routes(&health, metrics),
            Limits::default(),
            shutdown,
        )
        .await;
    }
}

/// Function that returns the metrics' text, so that tests need no relay.
type Metrics = Arc<dyn Fn() -> String + Send + Sync>;

fn routes(health: &Health, metrics: Metrics) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(text_of))
        .with_state(metrics)
        .merge(health.router())
}

async fn index() -> &'static str {
    concat!(
        "tidings ",
        env!("CARGO_PKG_VERSION"),
        "\n\n/health/live   200 while the process runs\n",
        "/health/ready  200 if every check passes, otherwise 503\n",
        "/metrics       OpenMetrics text\n",
        "/console       the web console, with --console\n"
    )
}

async fn text_of(State(metrics): State<Metrics>) -> Response {
    let text = metrics();
    ([(header::CONTENT_TYPE, content_type(&text))], text).into_response()
}

/// OpenMetrics text ends with `# EOF`. The similar, older text format of Prometheus does not.
fn content_type(text: &str) -> &'static str {
    if text.trim_end().ends_with("# EOF") {
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    } else {
        "text/plain; version=0.0.4; charset=utf-8"
    }
}

fn remedy(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another process uses the port; choose another one with --listen ADDRESS:PORT, or \
             --listen off"
        }
        std::io::ErrorKind::PermissionDenied => {
            "ports below 1024 require a privilege; choose another one with --listen ADDRESS:PORT"
        }
        _ => "choose an address of this machine with --listen ADDRESS:PORT, or --listen off",
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::health::Status;

    fn shown(status: Status) -> Health {
        Health::new()
            .check("database", move || std::future::ready(status.clone()))
            .check("kafka", || std::future::ready(Status::Ok("fine".into())))
    }

    async fn get(health: Health, path: &str) -> String {
        let metrics = Arc::new(|| "# TYPE x counter\nx_total 1\n# EOF\n".into());
        let server = Server::bind("127.0.0.1:0").await.expect("a free port");
        let (address, shutdown) = (server.address(), CancellationToken::new());
        let serving = tokio::spawn(server.serve_shown(health, metrics, shutdown.clone()));
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("the server listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream
            .write_all(request.as_bytes())
            .await
            .expect("the server reads");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .await
            .expect("the server responds");
        shutdown.cancel();
        serving.await.expect("no panic");
        answer
    }

    #[tokio::test]
    async fn a_relay_is_ready_when_every_check_holds() {
        let answer = get(shown(Status::Ok("connected".into())), "/health/ready").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            answer.contains(r#"{"name":"database","status":"ok","text":"connected"}"#),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn one_failing_check_makes_a_relay_not_ready_and_says_why() {
        let answer = get(
            shown(Status::Failing("no answer from db:5432".into())),
            "/health/ready",
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(
            answer.contains(r#""text":"no answer from db:5432"#)
                && answer.contains(r#""status":"not ready""#),
            "{answer}"
        );
        let answer = get(shown(Status::Failing("no".into())), "/health/live").await;
        assert!(
            answer.starts_with("HTTP/1.1 200"),
            "liveness does not depend on readiness: {answer}"
        );
    }

    #[tokio::test]
    async fn metrics_have_the_content_type_of_their_format() {
        let answer = get(shown(Status::Ok(String::new())), "/metrics").await;
        assert!(
            answer.contains("application/openmetrics-text; version=1.0.0"),
            "{answer}"
        );
        assert_eq!(
            content_type("x 1\n"),
            "text/plain; version=0.0.4; charset=utf-8"
        );
    }

    #[tokio::test]
    async fn a_port_in_use_is_refused_with_the_flag_to_change() {
        let first = Server::bind("127.0.0.1:0").await.expect("a free port");
        let text = Server::bind(&first.address().to_string())
            .await
            .expect_err("the port is in use")
            .to_string();
        assert!(
            text.contains("--listen") && text.contains(&first.address().to_string()),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_its_answer_does_not_keep_the_server() {
        let (asked, was_asked) = std::sync::mpsc::channel();
        // More bytes than the socket buffers hold.
        let metrics = move || {
            asked.send(()).expect("the test listens");
            "x".repeat(64 << 20)
        };
        let server = Server::bind("127.0.0.1:0").await.expect("a free port");
        let (address, shutdown) = (server.address(), CancellationToken::new());
        let serving =
            tokio::spawn(server.serve_shown(Health::new(), Arc::new(metrics), shutdown.clone()));
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("the server listens");
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .expect("the server reads");
        tokio::task::spawn_blocking(move || was_asked.recv())
            .await
            .expect("no panic")
            .expect("the metrics are requested");
        shutdown.cancel();
        let ended = tokio::time::timeout(std::time::Duration::from_secs(60), serving)
            .await
            .expect("the server stops in time");
        ended.expect("no panic");
    }
}
