//! The legacy order system, with neither events nor a database. The gateway still forwards to it
//! what the new service does not support yet.

use axum::{Json, Router, routing::get};
use serde_json::{Value, json};
use tidings::health::Health;

use super::Failure;

pub(crate) async fn main() -> Result<(), Failure> {
    super::service::end_with_parent();
    let routes = Router::new()
        .route("/orders", get(all))
        .route("/orders/{id}/invoice", get(invoice))
        .merge(Health::new().router());
    Ok(axum::serve(super::service::listen()?, routes).await?)
}

async fn all() -> Json<Value> {
    Json(json!([{"id": 1, "customer": "ada", "article": "abacus", "from": "the legacy system"}]))
}

async fn invoice() -> &'static str {
    "one abacus, paid in 1999\n"
}
