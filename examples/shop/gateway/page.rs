//! The page and its actions. It is not for customers: anyone who opens it can break and kill
//! services.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Html;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::{Gateway, internal};
use crate::processes::{BREAKABLE, NAMES};

pub(super) fn routes() -> Router<Gateway> {
    Router::new()
        .route("/", get(|| async { Html(include_str!("page.html")) }))
        .route("/play/state", get(state))
        .route("/play/{service}/kill", post(kill))
        .route("/play/{service}/start", post(launch))
        .route(
            "/play/{service}/break",
            post(|gateway, service| set_broken(gateway, service, true)),
        )
        .route(
            "/play/{service}/mend",
            post(|gateway, service| set_broken(gateway, service, false)),
        )
}

/// Returns each service with its circuit, the newest orders and the newest events.
async fn state(State(gateway): State<Gateway>) -> Json<Value> {
    let service = |name: &&'static str| {
        let (circuit, processes) = (
            gateway.upstreams[*name].breaker().state().to_string(),
            &gateway.processes,
        );
        let (running, broken) = (processes.is_running(name), processes.is_broken(name));
        json!({
            "name": name,
            "running": running,
            "broken": broken,
            "breakable": BREAKABLE.contains(name),
            "circuit": circuit,
        })
    };
    let services: Vec<Value> = NAMES.iter().map(service).collect();
    let orders = gateway.upstreams["order"].get("/orders".into()).await.ok();
    let orders: Option<Value> = orders.and_then(|answer| serde_json::from_slice(&answer.body).ok());
    Json(json!({ "services": services, "orders": orders, "events": gateway.feed.events() }))
}

async fn kill(State(gateway): State<Gateway>, Path(service): Path<String>) {
    gateway.processes.kill(&service);
}

async fn launch(
    State(gateway): State<Gateway>,
    Path(service): Path<String>,
) -> Result<(), (StatusCode, String)> {
    gateway.processes.launch(&service).map_err(internal)
}

async fn set_broken(
    State(gateway): State<Gateway>,
    Path(service): Path<String>,
    broken: bool,
) -> Result<(), (StatusCode, String)> {
    gateway
        .processes
        .set_broken(&service, broken)
        .await
        .map_err(internal)
}
