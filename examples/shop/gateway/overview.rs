//! A customer's view of an order, from three services at once. If a service does not respond, the
//! response contains the other parts and names the missing one.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::Gateway;

pub(super) async fn show(
    State(gateway): State<Gateway>,
    Path(id): Path<String>,
) -> (StatusCode, Json<Value>) {
    let ask = |service, path| part(&gateway, service, format!("/{path}/{id}"));
    let (order, payment, parcel) = tokio::join!(
        ask("order", "orders"),
        ask("payment", "payments"),
        ask("shipping", "parcels")
    );
    let parts = [("order", order), ("payment", payment), ("shipping", parcel)];
    let missing: Vec<&str> = parts
        .iter()
        .filter(|(_, part)| part.is_none())
        .map(|(name, _)| *name)
        .collect();
    let status = match (missing.len(), &parts[0].1) {
        (3, _) => StatusCode::SERVICE_UNAVAILABLE,
        (_, Some(Value::Null)) => StatusCode::NOT_FOUND,
        _ => StatusCode::OK,
    };
    let mut body = json!({ "missing": missing });
    for (name, part) in parts {
        body[name] = part.unwrap_or_default();
    }
    (status, Json(body))
}

/// Returns the service's part of the order: null if it has none yet, `None` if it does not respond.
async fn part(gateway: &Gateway, service: &str, path: String) -> Option<Value> {
    let answer = gateway.upstreams[service].get(path).await.ok()?;
    match answer.status {
        StatusCode::NOT_FOUND => Some(Value::Null),
        status if status.is_success() => serde_json::from_slice(&answer.body).ok(),
        _ => None,
    }
}
