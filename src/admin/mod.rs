//! What a relay shows over HTTP: is it alive, is it ready, and its metrics.
//!
//! | path | answers |
//! |---|---|
//! | `/health/live` | 200 as long as the process runs |
//! | `/health/ready` | 200 if every named check holds, else 503; the checks as JSON |
//! | `/metrics` | the metrics, in OpenMetrics text |
//! | `/` | this list |
//!
//! Served from the moment the process starts, so that a relay that waits for its database says so. There is no
//! authentication and no TLS: listen on loopback, or where only the cluster's own network reaches.

mod connections;
mod server;

pub use server::{AdminError, Server};
