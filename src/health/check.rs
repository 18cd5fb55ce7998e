//! One check, and what it says.

use std::fmt::Display;
use std::pin::Pin;

/// What a check says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// As it should be; the text says more, e.g. "leader, epoch 7".
    Ok(String),
    /// Something is amiss, and requests are served nevertheless: shown, and still ready.
    Degraded(String),
    /// Not ready; the text says what happened.
    Failing(String),
}

/// A check's answer, under way.
pub type Checking<'a> = Pin<Box<dyn Future<Output = Status> + Send + 'a>>;

/// Something that can be asked how it stands. A closure that gives a future is one, and so is a closure whose future gives a
/// `Result`: `|| async { Ok::<_, Error>("12 GiB free") }`.
pub trait Check: Send + Sync + 'static {
    /// How it stands now. Called once for each question; dropped when its time is over.
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
