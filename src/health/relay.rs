//! Health checks of a relay in this process.

use super::{Health, Status};
use crate::relay::{CheckState, RelayMetrics};

impl Health {
    /// Adds the checks of a relay in this process, with the relay's names: `database`, `lease`,
    /// `kafka`, `stream`.
    #[must_use]
    pub fn relay(self, observer: &RelayMetrics) -> Self {
        observer.checks().into_iter().fold(self, |health, check| {
            let (name, observer) = (check.name, observer.clone());
            health.check(name, move || std::future::ready(status(&observer, name)))
        })
    }
}

fn status(observer: &RelayMetrics, name: &str) -> Status {
    match observer
        .checks()
        .into_iter()
        .find(|check| check.name == name)
        .map(|check| check.state)
    {
        Some(CheckState::Ok(text)) => Status::Ok(text),
        Some(CheckState::Failing(text)) => Status::Failing(text),
        None => Status::Failing("the relay has no check of this name".into()),
    }
}
