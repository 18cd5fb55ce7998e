//! The gateway: the only address that customers use.
//!
//! ```text
//! GET  /api/orders/{id}   three services at once; names the missing ones   overview.rs
//!      /api/orders/v2…    the new order service                            ┐ the strangler fig:
//!      /api/orders…       the legacy system, for all other order routes    ┘ moved route by route
//!      /api/payments/…    the payment service; likewise /api/parcels/…
//! GET  /                  a page to experiment with                        page.rs, page.html
//! ```
//!
//! Every call to a service goes through `upstream.rs`: retry, circuit breaker, bulkhead, timeout.

mod feed;
mod overview;
mod page;
mod upstream;

use std::collections::HashMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get};
use tidings::health::{CircuitBreakerCheck, Health};
use tidings::resilience::circuit_breaker::CircuitBreaker;
use tidings::resilience::{CircuitOpen, timeout::Elapsed};
use tidings::{Bus, kafka};
use tower::BoxError;

use super::Failure;
use super::events::CircuitChanged;
use super::processes::{NAMES, Processes};
use super::servers::Servers;
use upstream::{Ask, Upstream};

/// State of the routes.
#[derive(Clone)]
pub(crate) struct Gateway {
    upstreams: Arc<HashMap<&'static str, Upstream>>,
    processes: Arc<Processes>,
    feed: feed::Feed,
}

/// Starts the gateway and returns its address.
pub(crate) async fn start(
    servers: &Servers,
    processes: Arc<Processes>,
    port: u16,
) -> Result<SocketAddr, Failure> {
    let upstreams: HashMap<_, _> = NAMES
        .map(|name| (name, Upstream::new(name, processes.address(name))))
        .into();
    let bus = Bus::new(kafka::Settings {
        brokers: servers.brokers(),
        ..Default::default()
    })
    .source("/shop/gateway");
    upstreams.values().for_each(|upstream| {
        drop(tokio::spawn(publish_transitions(
            bus.clone(),
            upstream.breaker().clone(),
        )))
    });
    let health = upstreams.values().fold(Health::new(), |health, upstream| {
        health.check(
            upstream.breaker().name(),
            CircuitBreakerCheck::new(upstream.breaker()),
        )
    });
    let gateway = Gateway {
        upstreams: Arc::new(upstreams),
        processes,
        feed: feed::Feed::start(servers.brokers())?,
    };
    let routes = Router::new()
        .route("/api/orders/v2", any(order))
        .route("/api/orders/v2/{*rest}", any(order))
        .route("/api/orders", any(legacy))
        .route("/api/orders/{id}", get(overview::show))
        .route("/api/orders/{id}/{*rest}", any(legacy))
        .route("/api/payments/{*rest}", any(payment))
        .route("/api/parcels/{*rest}", any(shipping))
        .merge(page::routes())
        .with_state(gateway)
        .merge(health.router());
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Ok(address)
}

/// Publishes the transitions of a circuit as events. They go directly to Kafka, because the gateway
/// has no database.
async fn publish_transitions(bus: Bus, breaker: CircuitBreaker) {
    let mut transitions = breaker.transitions();
    while let Some(transition) = transitions.next().await {
        let (from, to, cause) = (
            transition.from.to_string(),
            transition.to.to_string(),
            transition.cause.to_string(),
        );
        if let Err(error) = bus
            .publish(&CircuitChanged {
                service: breaker.name().to_owned(),
                from,
                to,
                cause,
            })
            .await
        {
            tracing::warn!("{error}");
        }
    }
}

async fn order(State(gateway): State<Gateway>, method: Method, uri: Uri, body: Bytes) -> Response {
    gateway
        .forward(
            "order",
            method,
            uri.path().replacen("/api/orders/v2", "/orders", 1),
            body,
        )
        .await
}

async fn legacy(State(gateway): State<Gateway>, method: Method, uri: Uri, body: Bytes) -> Response {
    gateway
        .forward("legacy", method, uri.path().replacen("/api", "", 1), body)
        .await
}

async fn payment(
    State(gateway): State<Gateway>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    gateway
        .forward("payment", method, uri.path().replacen("/api", "", 1), body)
        .await
}

async fn shipping(
    State(gateway): State<Gateway>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    gateway
        .forward("shipping", method, uri.path().replacen("/api", "", 1), body)
        .await
}

impl Gateway {
    /// Returns the response of a service, or an error response if there is none.
    async fn forward(
        &self,
        service: &'static str,
        method: Method,
        path: String,
        body: Bytes,
    ) -> Response {
        match self.upstreams[service]
            .ask(Ask { method, path, body })
            .await
        {
            Ok(answer) => answer.into_response(),
            Err(error) => refusal(service, &error),
        }
    }
}

/// Returns the error response for a call that was rejected by the circuit, timed out or failed.
fn refusal(service: &str, error: &BoxError) -> Response {
    let mut headers = HeaderMap::new();
    if let Some(open) = error.downcast_ref::<CircuitOpen>() {
        headers.insert(RETRY_AFTER, (open.retry_after.as_secs() + 1).into());
    }
    let status = if error.is::<Elapsed>() {
        StatusCode::GATEWAY_TIMEOUT
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, headers, format!("{service}: {error}")).into_response()
}

/// Maps an unexpected error of a service to a response.
pub(crate) fn internal(error: impl Display) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}
