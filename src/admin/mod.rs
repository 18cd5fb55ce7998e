//! Admin server of a relay: liveness, readiness and metrics over HTTP.
//!
//! | path | response |
//! |---|---|
//! | `/health/live` | 200 as long as the process runs |
//! | `/health/ready` | 200 if every check passes, otherwise 503; lists the checks as JSON |
//! | `/metrics` | the metrics as OpenMetrics text |
//! | `/console` | the web console, if it is enabled |
//! | `/` | this list |
//!
//! The server runs from the start of the process, so a relay that waits for its database reports
//! that. There is no authentication and no TLS. Listen on loopback, or on an address that only the
//! cluster's own network reaches.

mod connections;
mod server;

pub use server::{AdminError, Server};
