//! The listener and its routes.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::relay::{Check, CheckState, Observer};

/// Why the admin address cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} for health and metrics: {source}; {}", remedy(source))]
    Listen {
        /// Where.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The listener broke off.
    #[error("the admin server on {address} failed: {source}")]
    Serve {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The admin server, listening.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Listens on `host:port`; port 0 takes any free one.
    ///
    /// # Errors
    ///
    /// [`AdminError::Listen`], naming the setting to change.
    pub async fn bind(address: &str) -> Result<Self, AdminError> {
        let failed = |source| AdminError::Listen { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown` is cancelled.
    ///
    /// # Errors
    ///
    /// [`AdminError::Serve`] when the listener breaks off.
    pub async fn serve(self, observer: Observer, shutdown: CancellationToken) -> Result<(), AdminError> {
        let metrics = observer.clone();
        self.serve_shown(Shown { checks: Arc::new(move || observer.checks()), metrics: Arc::new(move || metrics.metrics_text()) }, shutdown)
            .await
    }

    async fn serve_shown(self, shown: Shown, shutdown: CancellationToken) -> Result<(), AdminError> {
        let address = self.address;
        let serving = axum::serve(self.listener, routes(shown)).with_graceful_shutdown(shutdown.clone().cancelled_owned());
        // A client that keeps its connection open must not keep the process.
        tokio::select! {
            ended = serving => ended.map_err(|source| AdminError::Serve { address, source }),
            () = async { shutdown.cancelled().await; tokio::time::sleep(LAST_ANSWERS).await } => Ok(()),
        }
    }
}

/// How long answers under way may take once the server shall stop.
const LAST_ANSWERS: std::time::Duration = std::time::Duration::from_millis(500);

/// What is shown, as functions: what a test shows needs no relay.
#[derive(Clone)]
struct Shown {
    checks: Arc<dyn Fn() -> Vec<Check> + Send + Sync>,
    metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

fn routes(shown: Shown) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(shown)
}

async fn index() -> &'static str {
    concat!(
        "tidings ",
        env!("CARGO_PKG_VERSION"),
        "\n\n/health/live   200 while the process runs\n/health/ready  200 if every check holds, else 503\n/metrics       OpenMetrics text\n"
    )
}

async fn live() -> Response {
    Json(json!({ "status": "live" })).into_response()
}

async fn ready(State(shown): State<Shown>) -> Response {
    let checks = (shown.checks)();
    let failing = checks.iter().any(|check| matches!(check.state, CheckState::Failing(_)));
    let listed: Vec<_> = checks.iter().map(listed).collect();
    let (code, status) = if failing { (StatusCode::SERVICE_UNAVAILABLE, "not ready") } else { (StatusCode::OK, "ready") };
    (code, Json(json!({ "status": status, "checks": listed }))).into_response()
}

fn listed(check: &Check) -> serde_json::Value {
    let (status, text) = match &check.state {
        CheckState::Ok(text) => ("ok", text),
        CheckState::Failing(text) => ("failing", text),
    };
    json!({ "name": check.name, "status": status, "text": text })
}

async fn metrics(State(shown): State<Shown>) -> Response {
    let text = (shown.metrics)();
    ([(header::CONTENT_TYPE, content_type(&text))], text).into_response()
}

/// OpenMetrics text ends with `# EOF`; Prometheus's older text format, which it resembles, does not.
fn content_type(text: &str) -> &'static str {
    if text.trim_end().ends_with("# EOF") {
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    } else {
        "text/plain; version=0.0.4; charset=utf-8"
    }
}

fn remedy(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::AddrInUse => "another process has the port: choose another with --listen ADDRESS:PORT, or --listen off",
        std::io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege: choose another with --listen ADDRESS:PORT",
        _ => "choose an address of this machine with --listen ADDRESS:PORT, or --listen off",
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn shown(state: CheckState) -> Shown {
        let checks =
            move || vec![Check { name: "database", state: state.clone() }, Check { name: "kafka", state: CheckState::Ok("fine".into()) }];
        Shown { checks: Arc::new(checks), metrics: Arc::new(|| "# TYPE x counter\nx_total 1\n# EOF\n".into()) }
    }

    async fn get(shown: Shown, path: &str) -> String {
        let server = Server::bind("127.0.0.1:0").await.expect("a free port");
        let (address, shutdown) = (server.address(), CancellationToken::new());
        let serving = tokio::spawn(server.serve_shown(shown, shutdown.clone()));
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        shutdown.cancel();
        serving.await.expect("no panic").expect("it stops");
        answer
    }

    #[tokio::test]
    async fn a_relay_is_ready_when_every_check_holds() {
        let answer = get(shown(CheckState::Ok("connected".into())), "/health/ready").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains(r#"{"name":"database","status":"ok","text":"connected"}"#), "{answer}");
    }

    #[tokio::test]
    async fn one_failing_check_makes_a_relay_not_ready_and_says_why() {
        let answer = get(shown(CheckState::Failing("no answer from db:5432".into())), "/health/ready").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains(r#""text":"no answer from db:5432"#) && answer.contains(r#""status":"not ready""#), "{answer}");
        let answer = get(shown(CheckState::Failing("no".into())), "/health/live").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "alive is not ready: {answer}");
    }

    #[tokio::test]
    async fn metrics_have_the_content_type_of_their_format() {
        let answer = get(shown(CheckState::Ok(String::new())), "/metrics").await;
        assert!(answer.contains("application/openmetrics-text; version=1.0.0"), "{answer}");
        assert_eq!(content_type("x 1\n"), "text/plain; version=0.0.4; charset=utf-8");
    }

    #[tokio::test]
    async fn a_port_in_use_is_refused_with_the_flag_to_change() {
        let first = Server::bind("127.0.0.1:0").await.expect("a free port");
        let text = Server::bind(&first.address().to_string()).await.expect_err("it is taken").to_string();
        assert!(text.contains("--listen") && text.contains(&first.address().to_string()), "{text}");
    }

    #[tokio::test]
    async fn an_open_connection_does_not_keep_the_server() {
        let server = Server::bind("127.0.0.1:0").await.expect("a free port");
        let (address, shutdown) = (server.address(), CancellationToken::new());
        let serving = tokio::spawn(server.serve_shown(shown(CheckState::Ok(String::new())), shutdown.clone()));
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        stream.write_all(b"GET / HT").await.expect("it reads");
        shutdown.cancel();
        serving.await.expect("no panic").expect("it stops");
    }
}
