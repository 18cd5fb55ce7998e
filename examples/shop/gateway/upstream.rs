//! A service as the gateway calls it: an HTTP client with layers.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use tidings::resilience::circuit_breaker::CircuitBreakerPolicy;
use tidings::resilience::{
    Bulkhead, BulkheadLayer, BulkheadPolicy, CircuitBreaker, CircuitBreakerLayer, Class,
    RetryLayer, RetryPolicy, TimeoutLayer,
};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, ServiceExt as _, service_fn};

/// A request. Sending it twice is safe, because an order carries an id from the customer.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Bytes,
}

/// A response.
#[derive(Clone)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    content_type: Option<HeaderValue>,
}

#[derive(Clone)]
pub(super) struct Upstream {
    client: BoxCloneSyncService<Ask, Answer, BoxError>,
    breaker: CircuitBreaker,
}

impl Upstream {
    /// Each service has its own breaker and bulkhead, so that a failed service does not affect the
    /// others.
    pub(super) fn new(name: &'static str, address: &str) -> Self {
        let breaker = CircuitBreaker::new(
            name,
            CircuitBreakerPolicy {
                open: Duration::from_secs(2),
                ..Default::default()
            },
        );
        let bulkhead = Bulkhead::new(name, BulkheadPolicy::default());
        let (http, base) = (reqwest::Client::new(), format!("http://{address}"));
        let client = ServiceBuilder::new()
            .layer(
                RetryLayer::new(RetryPolicy::exponential(
                    3,
                    Duration::from_millis(50)..Duration::from_millis(500),
                ))
                .classify(judge),
            )
            .layer(CircuitBreakerLayer::new(&breaker).classify(judge))
            .layer(BulkheadLayer::new(&bulkhead))
            .layer(TimeoutLayer::new(Duration::from_secs(2)))
            .service(service_fn(move |ask| send(http.clone(), base.clone(), ask)));
        Self {
            client: BoxCloneSyncService::new(client),
            breaker,
        }
    }

    pub(super) async fn ask(&self, ask: Ask) -> Result<Answer, BoxError> {
        self.client.clone().oneshot(ask).await
    }

    /// Requests this path.
    pub(super) async fn get(&self, path: String) -> Result<Answer, BoxError> {
        self.ask(Ask {
            method: Method::GET,
            path,
            body: Bytes::new(),
        })
        .await
    }

    pub(super) fn breaker(&self) -> &CircuitBreaker {
        &self.breaker
    }
}

/// Classifies an outcome, for both the retry and the breaker.
fn judge(outcome: Result<&Answer, &BoxError>) -> Class {
    match outcome {
        Ok(answer) if answer.status.is_server_error() => Class::Transient,
        Ok(answer) if answer.status.is_client_error() => Class::Permanent,
        Ok(_) => Class::Success,
        Err(_) => Class::Transient,
    }
}

async fn send(http: reqwest::Client, base: String, ask: Ask) -> Result<Answer, BoxError> {
    let request = http
        .request(ask.method, base + &ask.path)
        .header(CONTENT_TYPE, "application/json")
        .body(ask.body);
    let response = request.send().await?;
    let (status, content_type) = (
        response.status(),
        response.headers().get(CONTENT_TYPE).cloned(),
    );
    Ok(Answer {
        status,
        content_type,
        body: response.bytes().await?,
    })
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.body).into_response();
        if let Some(content_type) = self.content_type {
            response.headers_mut().insert(CONTENT_TYPE, content_type);
        }
        response
    }
}
