//! Classification of outcomes, shared by the retry and the circuit breaker.

use std::any::Any;
use std::error::Error;
use std::time::Duration;

use tower::BoxError;

use super::bulkhead::BulkheadError;
use super::circuit_breaker::CircuitOpen;

/// Meaning of a call's outcome.
///
/// | class | retry | circuit breaker |
/// |---|---|---|
/// | [`Success`](Self::Success) | ends | counts a success |
/// | [`Transient`](Self::Transient) | retries after its backoff | counts a failure |
/// | [`RateLimited`](Self::RateLimited) | retries, not before `retry_after` | counts neither (1) |
/// | [`Permanent`](Self::Permanent) | gives up | counts a success (2) |
/// | [`Rejected`](Self::Rejected) | gives up | counts neither (3) |
///
/// 1. A busy dependency is not a broken one.
/// 2. A dependency that refuses a request is available.
/// 3. The dependency was not called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Class {
    /// The request was carried out.
    Success,
    /// The same request may succeed later: a refused connection, a timeout, a 503, a serialization
    /// failure.
    #[doc(alias = "retryable")]
    Transient,
    /// Too many requests (HTTP 429). The request may be repeated after `retry_after`.
    RateLimited {
        /// Time to wait before the next request. Zero if the dependency did not specify it.
        retry_after: Duration,
    },
    /// The same request will fail in the same way: an HTTP 400, a violated constraint.
    Permanent,
    /// Rejected on the caller's side, by a circuit breaker or a bulkhead. The layers recognize
    /// these errors themselves, so a classifier need not handle them.
    Rejected,
}

/// Classifies outcomes. A closure implements it:
/// `|outcome: Result<&Response, &MyError>| match outcome { … }`.
///
/// It is not called for [`CircuitOpen`] and [`BulkheadError`], neither bare nor in a [`BoxError`].
/// They are always [`Class::Rejected`].
pub trait Classify<Response, Error> {
    /// Returns the class of this outcome.
    fn classify(&self, outcome: Result<&Response, &Error>) -> Class;
}

/// Classifies every error as transient and every response as a success. It is suitable if nothing
/// is known about the errors, and wasteful if some of them are permanent.
#[derive(Clone, Copy, Debug, Default)]
pub struct EveryError;

/// Returns the class of an outcome. Recognizes rejections of the layers below before it calls the
/// classifier.
pub(super) fn class_of<Response, E: 'static>(
    classify: &impl Classify<Response, E>,
    outcome: &Result<Response, E>,
) -> Class {
    match outcome {
        Err(error) if is_rejection(error) => Class::Rejected,
        outcome => classify.classify(outcome.as_ref()),
    }
}

fn is_rejection<E: 'static>(error: &E) -> bool {
    let any = error as &dyn Any;
    let Some(boxed) = any.downcast_ref::<BoxError>() else {
        return any.is::<CircuitOpen>() || any.is::<BulkheadError>();
    };
    let mut cause: Option<&(dyn Error + 'static)> = Some(&**boxed);
    while let Some(error) = cause {
        if error.is::<CircuitOpen>() || error.is::<BulkheadError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

// === impl Classify ===

impl<F, Response, Error> Classify<Response, Error> for F
where
    F: Fn(Result<&Response, &Error>) -> Class,
{
    fn classify(&self, outcome: Result<&Response, &Error>) -> Class {
        self(outcome)
    }
}

impl<Response, Error> Classify<Response, Error> for EveryError {
    fn classify(&self, outcome: Result<&Response, &Error>) -> Class {
        if outcome.is_ok() {
            Class::Success
        } else {
            Class::Transient
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> CircuitOpen {
        CircuitOpen {
            name: "stock".into(),
            retry_after: Duration::from_secs(3),
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("reserving stock")]
    struct Reserving(#[source] CircuitOpen);

    #[test]
    fn a_rejection_is_recognised_bare_boxed_and_as_a_cause() {
        let boxed = |error: BoxError| class_of(&EveryError, &Err::<(), BoxError>(error));
        assert_eq!(
            class_of(&EveryError, &Err::<(), _>(open())),
            Class::Rejected
        );
        assert_eq!(boxed(open().into()), Class::Rejected);
        assert_eq!(boxed(Reserving(open()).into()), Class::Rejected);
        assert_eq!(boxed("connection refused".into()), Class::Transient);
        assert_eq!(
            class_of(&EveryError, &Ok::<_, BoxError>(())),
            Class::Success
        );
    }

    #[test]
    fn a_classifier_is_not_asked_about_a_rejection() {
        let counts_all = |_: Result<&(), &BoxError>| Class::Transient;
        assert_eq!(class_of(&counts_all, &Err(open().into())), Class::Rejected);
        assert_eq!(class_of(&counts_all, &Ok(())), Class::Transient);
    }
}
