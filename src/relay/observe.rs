//! What a relay shows of itself: metrics and named checks.

use std::sync::Arc;

/// How a named check stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckState {
    /// As it should be; the text says more, e.g. "leader, epoch 7".
    Ok(String),
    /// Not ready; the text says what happened and what to do.
    Failing(String),
}

/// One named readiness check: `database`, `kafka`, `lease`, `stream`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The check's name.
    pub name: &'static str,
    /// How it stands.
    pub state: CheckState,
}

/// What a relay shows of itself; cheap to clone, shared between the relay and the admin server.
#[derive(Clone)]
pub struct Observer(Arc<()>);

impl Observer {
    /// The metrics in Prometheus text format.
    pub fn metrics_text(&self) -> String {
        unimplemented!()
    }
    /// Every readiness check as it stands now.
    pub fn checks(&self) -> Vec<Check> {
        unimplemented!()
    }
}
