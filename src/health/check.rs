//! Health check and its status.

use std::fmt::Display;
use std::pin::Pin;

/// Status that a check reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// The check passes. The text gives details, e.g. "leader, epoch 7".
    Ok(String),
    /// The service is impaired but still serves requests, so it remains ready.
    Degraded(String),
    /// The service is not ready. The text gives the reason.
    Failing(String),
}

/// Future of a check's status.
pub type Checking<'a> = Pin<Box<dyn Future<Output = Status> + Send + 'a>>;

/// Health check. A closure that returns a future of a [`Status`] implements it, and so does a
/// closure whose future returns a `Result`: `|| async { Ok::<_, Error>("12 GiB free") }`.
pub trait Check: Send + Sync + 'static {
    /// Returns the current status. Called once per run of the checks, and dropped when its time
    /// limit expires.
    fn check(&self) -> Checking<'_>;
}

// === impl Check ===

impl<F, Answer> Check for F
where
    F: Fn() -> Answer + Send + Sync + 'static,
    Answer: Future<Output: Into<Status>> + Send + 'static,
{
    fn check(&self) -> Checking<'_> {
        let answer = self();
        Box::pin(async { answer.await.into() })
    }
}

// === impl From ===

impl<T: Into<String>, E: Display> From<Result<T, E>> for Status {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(text) => Self::Ok(text.into()),
            Err(error) => Self::Failing(error.to_string()),
        }
    }
}
