//! `tidings health`: queries the health of the relay on this machine, for probes.
//!
//! An image without a shell and without curl can run its own binary as a probe.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use clap::Args;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpStream, lookup_host};

use super::config::{Config, parse_duration};
use super::escape::{escaped, escaped_json};
use super::exit::{DONE, FAILED, Failure, with_causes};
use super::output;

/// Bytes of a report. A relay has five checks, each with the text of an error.
const REPORT_MAX: usize = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// Only check that the process runs, as a liveness probe does
    #[arg(long)]
    live: bool,
    /// Fail if there is no response within this time
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = parse_duration)]
    timeout: Duration,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Error of a request to the admin server.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("cannot connect")]
    Connect(#[from] std::io::Error),
    #[error("the response is not one of an admin server")]
    Protocol(#[from] hyper::Error),
    #[error("the response cannot be read")]
    Body(#[source] axum::Error),
    #[error("the request is invalid")]
    Request(#[from] hyper::http::Error),
    #[error("the address has no host")]
    NoHost,
}

/// Prints the health of the relay. The exit code is 0 if it is ready, and 1 otherwise.
pub(super) async fn run(config: &Config, args: &HealthArgs) -> Result<ExitCode, Failure> {
    let Some(listen) = &config.listen else {
        return Err(Failure::Options(
            "admin.listen is off, so no relay can be queried\n  \
             -> set --listen to the address of the relay"
                .into(),
        ));
    };
    let path = match args.live {
        true => "/health/live",
        false => "/health/ready",
    };
    let asked = tokio::time::timeout(args.timeout, request(listen, path)).await;
    let (status, text) = match asked {
        Ok(answer) => answer.map_err(|error| unanswered(listen, &with_causes(&error)))?,
        Err(_) => {
            let limit = format!("no response within {:?}", args.timeout);
            return Err(unanswered(listen, &limit));
        }
    };
    let report: Value = serde_json::from_str(&text).unwrap_or_default();
    if args.json {
        output::own(&format!("{}\n", escaped_json(text.trim_end())));
    } else {
        output::lines(&shown(status, &report));
    }
    Ok(ExitCode::from(match status {
        StatusCode::OK => DONE,
        _ => FAILED,
    }))
}

/// Formats the result in one line, and each check that does not hold in a further line.
fn shown(status: StatusCode, report: &Value) -> String {
    let mut text = match status {
        StatusCode::OK => String::from("healthy\n"),
        StatusCode::SERVICE_UNAVAILABLE => String::from("not ready\n"),
        other => format!("unexpected response: {other}\n"),
    };
    let checks = report["checks"].as_array();
    for check in checks.into_iter().flatten() {
        if check["status"] != "ok" {
            let part = |name: &str| escaped(check[name].as_str().unwrap_or("?")).into_owned();
            text.push_str(&format!("{}: {}\n", part("name"), part("text")));
        }
    }
    text
}

fn unanswered(listen: &str, reason: &str) -> Failure {
    Failure::Failed(format!(
        "the relay at {} cannot be queried: {reason}\n  \
         -> start it, or set --listen to its address",
        escaped(listen)
    ))
}

/// Requests a path of the admin server. Returns the status and the body.
async fn request(listen: &str, path: &str) -> Result<(StatusCode, String), RequestError> {
    let address = lookup_host(listen).await?.next();
    let stream = TcpStream::connect(reachable(address.ok_or(RequestError::NoHost)?)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let asked = async {
        let request = Request::get(path)
            .header(header::HOST, listen)
            .header(header::CONNECTION, "close")
            .body(Body::empty())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = to_bytes(Body::new(response.into_body()), REPORT_MAX)
            .await
            .map_err(RequestError::Body)?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    let mut asked = std::pin::pin!(asked);
    tokio::select! {
        answer = &mut asked => answer,
        // The server closes the connection after its response, which can be read afterwards.
        _ = connection => asked.await,
    }
}

/// Returns the address at which a process of this machine reaches a listener: a listener on all
/// addresses also listens on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let loopback = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(loopback, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_reached_on_loopback() {
        for (listen, reached) in [
            ("0.0.0.0:9464", "127.0.0.1:9464"),
            ("[::]:9464", "[::1]:9464"),
            ("10.0.0.7:1", "10.0.0.7:1"),
        ] {
            let address = listen.parse().expect(listen);
            assert_eq!(reachable(address).to_string(), reached);
        }
    }

    #[test]
    fn only_the_checks_that_do_not_hold_are_printed() {
        let report = serde_json::json!({"checks": [
            {"name": "database", "status": "ok", "text": "connected"},
            {"name": "kafka", "status": "failing", "text": "no\nanswer"},
        ]});
        assert_eq!(
            shown(StatusCode::SERVICE_UNAVAILABLE, &report),
            "not ready\nkafka: no\\nanswer\n"
        );
        assert_eq!(shown(StatusCode::OK, &Value::Null), "healthy\n");
    }
}
