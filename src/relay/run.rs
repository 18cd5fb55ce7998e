//! The relay: options in, events out.

use super::{Observer, RelayOptions};
use tokio_util::sync::CancellationToken;

/// Why a relay ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// Something only a person can put right (no logical WAL, no permission, a lost slot): says what and how.
    #[error("{0}")]
    Refused(String),
}

/// A relay that is ready to run.
pub struct Relay {
    observer: Observer,
    #[allow(dead_code)]
    options: RelayOptions,
}

impl Relay {
    /// A relay with these options; nothing is connected yet.
    pub fn new(_options: RelayOptions) -> Result<Self, RelayError> {
        unimplemented!()
    }
    /// What it shows of itself.
    pub fn observer(&self) -> Observer {
        self.observer.clone()
    }
    /// Runs until `shutdown` is cancelled (then drains and returns `Ok`) or until a person is needed.
    pub async fn run(self, _shutdown: CancellationToken) -> Result<(), RelayError> {
        unimplemented!()
    }
}
