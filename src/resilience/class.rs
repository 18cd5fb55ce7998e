//! What an outcome means: decided in one place, for the retry and for the circuit breaker.

use std::any::Any;
use std::error::Error;
use std::time::Duration;

use tower::BoxError;

use super::bulkhead::BulkheadError;
use super::circuit_breaker::CircuitOpen;

/// What the outcome of a call means.
///
/// | class | a retry | a circuit breaker |
/// |---|---|---|
/// | [`Success`](Self::Success) | is done | counts a success |
/// | [`Transient`](Self::Transient) | tries again after its backoff | counts a failure |
/// | [`RateLimited`](Self::RateLimited) | tries again, not before `retry_after` | counts neither: busy is not broken |
/// | [`Permanent`](Self::Permanent) | gives up | counts a success: whoever refuses a request is there |
/// | [`Rejected`](Self::Rejected) | gives up | counts neither: nobody was asked |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Class {
    /// What was asked for was done.
    Success,
    /// The same request may succeed later: a refused connection, a timeout, a 503, a serialization failure.
    #[doc(alias = "retryable")]
    Transient,
    /// Asked too often; `retry_after` from now it may be asked again (HTTP 429).
    RateLimited {
        /// How long to leave the other side alone. Zero if it did not say.
        retry_after: Duration,
    },
    /// The same request will fail in the same way: a 400, a constraint violated.
    Permanent,
    /// Turned away on this side, by a circuit breaker or a bulkhead. Recognised by itself: no classifier needs to name it.
    Rejected,
}

/// Says what an outcome means. A closure does: `|outcome: Result<&Response, &MyError>| match outcome { … }`.
///
/// It is not asked about [`CircuitOpen`] and [`BulkheadError`], bare or in a [`BoxError`]: those are [`Class::Rejected`].
pub trait Classify<Response, Error> {
    /// What this outcome means.
    fn classify(&self, outcome: Result<&Response, &Error>) -> Class;
}

/// Takes every error for transient and every response for a success. Right where nothing more is known of the errors, and
/// wasteful where some of them are permanent.
#[derive(Clone, Copy, Debug, Default)]
pub struct EveryError;

/// The class of an outcome, the rejections of the layers below recognised first.
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
