//! Errors of handlers.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::{
    event::{CodecError, EnvelopeError, InvalidEvent, VersionError},
    outbox::PublishError,
    postgres::{
        errors::{cleaned, with_causes},
        session_fault::{ends_session, is_session_fault},
    },
    subscriber::inbox::identity::{Conflicting, Unstorable},
};

type BoxError = Box<dyn Error + Send + Sync>;

/// Error of an event that was not handled, with a verdict on the next step.
///
/// The `?` operator chooses the verdict for errors of sqlx, serde and the outbox. The functions of
/// this type set it explicitly.
///
/// ```
/// use std::time::Duration;
/// use tidings::subscriber::{HandlerError, Verdict};
///
/// let error = HandlerError::snooze(Duration::from_secs(30), "the warehouse is closed");
/// assert_eq!(error.verdict(), Verdict::Snooze(Duration::from_secs(30)));
/// let error: HandlerError = sqlx::Error::PoolTimedOut.into();
/// assert_eq!(error.verdict(), Verdict::Unavailable);
/// ```
#[derive(Debug)]
pub struct HandlerError {
    verdict: Verdict,
    source: BoxError,
}

/// Reason why a payload is not an event of the handler's type.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undecodable {
    /// The codec rejects the payload.
    #[error(transparent)]
    Codec(CodecError),
    /// The codec rejects the payload, and its first bytes are those of another format.
    #[error("the value is {format}, which the event's codec does not read")]
    Format {
        format: &'static str,
        source: CodecError,
    },
    /// The record has no payload.
    #[error("the event has no data, so it is not a `{0}`")]
    NoData(&'static str),
}

/// The event waits for another version of the service's code.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WaitsForCode(String);

/// Pause before an event that waits for another version of the code is checked again. A member that
/// runs that version does not wait for the pause.
pub(crate) const CODE_PAUSE: Duration = Duration::from_secs(30);

/// Returns `true` if the version of the event is newer than this code supports.
fn is_newer(error: &(dyn Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(VersionError::Newer { .. }))
}

/// The next step for an event that was not handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Try again after a pause, as often as [`Retry`](crate::subscriber::Retry) allows.
    Retry,
    /// The event can never be handled. Send it to the dead letters at once.
    DeadLetter,
    /// The event is irrelevant. It counts as handled, without an effect.
    Skip,
    /// The event cannot be handled yet. Try again after this time. Costs no attempt.
    Snooze(Duration),
    /// A dependency of all events is down, for example the database. The subscriber pauses and
    /// probes. Costs no attempt.
    Unavailable,
}

impl HandlerError {
    /// Creates an error with the verdict [`Verdict::Retry`]: the event is tried again after a
    /// pause.
    pub fn retry(source: impl Into<BoxError>) -> Self {
        Self {
            verdict: Verdict::Retry,
            source: source.into(),
        }
    }

    /// Creates an error with the verdict [`Verdict::DeadLetter`]: the event can never be handled.
    pub fn dead_letter(source: impl Into<BoxError>) -> Self {
        Self {
            verdict: Verdict::DeadLetter,
            source: source.into(),
        }
    }

    /// Creates an error with the verdict [`Verdict::Skip`]: the transaction is rolled back, and the
    /// event counts as handled.
    pub fn skip(source: impl Into<BoxError>) -> Self {
        Self {
            verdict: Verdict::Skip,
            source: source.into(),
        }
    }

    /// Creates an error with the verdict [`Verdict::Snooze`]: the aggregate of the event waits.
    pub fn snooze(time: Duration, source: impl Into<BoxError>) -> Self {
        Self {
            verdict: Verdict::Snooze(time),
            source: source.into(),
        }
    }

    /// Creates an error with the verdict [`Verdict::Unavailable`]: a dependency of all events is
    /// down.
    pub fn unavailable(source: impl Into<BoxError>) -> Self {
        Self {
            verdict: Verdict::Unavailable,
            source: source.into(),
        }
    }

    /// Creates an error for an event that another version of the service's code handles. The event
    /// is parked until then and loses no attempt.
    pub(crate) fn wait_for_code(reason: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Snooze(CODE_PAUSE),
            source: WaitsForCode(reason.into()).into(),
        }
    }

    /// Returns `true` if the event waits for another version of the service's code.
    pub(crate) fn waits_for_code(&self) -> bool {
        self.source.is::<WaitsForCode>()
    }

    /// Returns the verdict.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Returns `true` if the version of the event requires newer code.
    pub(crate) fn asks_for_newer_code(&self) -> bool {
        is_newer(&*self.source)
    }

    /// Creates an error for a payload that is not an event of the handler's type, regardless of the
    /// handler.
    pub(crate) fn undecodable(error: Undecodable) -> Self {
        Self::dead_letter(error)
    }

    /// Returns `true` if the payload cannot be decoded, or the identity cannot be stored. The
    /// producer is the cause, not the handler.
    pub(crate) fn is_undecodable(&self) -> bool {
        self.source.is::<Undecodable>() || self.source.is::<Unstorable>()
    }

    /// Returns `true` if another event has the identity of this one.
    pub(crate) fn is_conflicting(&self) -> bool {
        self.source.is::<Conflicting>()
    }

    /// Returns `true` if the attempt timed out: in a layer, in the handler, or on the server.
    pub(crate) fn ran_out_of_time(&self) -> bool {
        self.verdict == Verdict::Retry && is_time_out(&*self.source)
    }

    /// Returns `true` if the error comes from a database session that cannot be used any more.
    pub(crate) fn ends_session(&self) -> bool {
        ends_session(&*self.source)
    }

    /// Returns the same error with the verdict [`Verdict::Unavailable`], so that the event loses no
    /// attempt.
    pub(crate) fn waited_out(self) -> Self {
        Self {
            verdict: Verdict::Unavailable,
            ..self
        }
    }

    /// Converts the error of a layer. A handler's own error keeps its verdict; most other errors
    /// are retried.
    pub(crate) fn from_layer(error: BoxError) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(own) => return *own,
            Err(error) => error,
        };
        match turned_away(&*error) {
            Some(time) => Self::snooze(time, error),
            None if ends_session(&*error) => Self::unavailable(error),
            None => Self::retry(error),
        }
    }

    /// Returns the error and its causes in one line.
    pub(crate) fn chain(&self) -> String {
        with_causes(&*self.source)
    }
}

/// Returns `true` if the error or one of its causes is a time-out.
fn is_time_out(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let is_one = error.is::<tower::timeout::error::Elapsed>()
            || error.is::<tokio::time::error::Elapsed>()
            || error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
            // `query_canceled`: a statement time-out.
            || matches!(
                error.downcast_ref(),
                Some(sqlx::Error::Database(error))
                    if error.code().is_some_and(|code| code == "57014")
            );
        if is_one {
            return true;
        }
        next = error.source();
    }
    false
}

/// Returns the pause if nothing was attempted because a circuit was open or a bulkhead was full.
/// The event is not the cause then.
fn turned_away(error: &(dyn Error + 'static)) -> Option<Duration> {
    #[cfg(feature = "resilience")]
    {
        use crate::resilience::{BulkheadError, CircuitOpen};
        if let Some(open) = error.downcast_ref::<CircuitOpen>() {
            return Some(open.retry_after.max(TURNED_AWAY_PAUSE));
        }
        if error.is::<BulkheadError>() {
            return Some(TURNED_AWAY_PAUSE);
        }
    }
    let _ = error;
    None
}

/// Minimum pause of an event that was rejected without an attempt.
#[cfg(feature = "resilience")]
const TURNED_AWAY_PAUSE: Duration = Duration::from_millis(100);

/// Returns the verdict for an error of Postgres by its SQLSTATE (PostgreSQL manual, appendix A).
fn of_sqlstate(code: &str) -> Verdict {
    match code {
        // Serialization failure, deadlock, lock not available: a concurrent transaction won.
        "40001" | "40P01" | "55P03" => Verdict::Retry,
        // The server is shutting down, starting or not the primary any more, or the connection
        // failed.
        code if is_session_fault(code) => Verdict::Unavailable,
        _ => match code.get(..2) {
            // Insufficient resources, or a system error of the server.
            Some("53" | "58") => Verdict::Unavailable,
            // A value that does not fit its column will not fit the next time.
            Some("22") => Verdict::DeadLetter,
            _ => Verdict::Retry,
        },
    }
}

fn of_sqlx(error: &sqlx::Error) -> Verdict {
    match error {
        sqlx::Error::Database(error) => error
            .code()
            .map_or(Verdict::Retry, |code| of_sqlstate(&code)),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Verdict::Unavailable,
        _ => Verdict::Retry,
    }
}

// === impl HandlerError ===

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Error for HandlerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

impl From<sqlx::Error> for HandlerError {
    fn from(error: sqlx::Error) -> Self {
        Self {
            verdict: of_sqlx(&error),
            source: cleaned(error).into(),
        }
    }
}

impl From<serde_json::Error> for HandlerError {
    fn from(error: serde_json::Error) -> Self {
        Self::dead_letter(error)
    }
}

impl From<CodecError> for HandlerError {
    fn from(error: CodecError) -> Self {
        Self::dead_letter(error)
    }
}

impl From<EnvelopeError> for HandlerError {
    fn from(error: EnvelopeError) -> Self {
        Self::dead_letter(error)
    }
}

impl From<InvalidEvent> for HandlerError {
    fn from(error: InvalidEvent) -> Self {
        Self::dead_letter(error)
    }
}

impl From<PublishError> for HandlerError {
    fn from(error: PublishError) -> Self {
        let verdict = match &error {
            PublishError::Database { .. } => error.as_sqlx().map_or(Verdict::Retry, of_sqlx),
            // No event can be published until an operator has migrated the database. Then all of
            // them continue.
            PublishError::MissingTable { .. } | PublishError::Schema(_) => Verdict::Unavailable,
            // The fault is in the code rather than in the event, so a corrected version can handle
            // the event.
            PublishError::NoTransaction => Verdict::Retry,
            _ => Verdict::DeadLetter,
        };
        Self {
            verdict,
            source: error.into(),
        }
    }
}

#[cfg(feature = "resilience")]
impl From<crate::resilience::CircuitOpen> for HandlerError {
    fn from(error: crate::resilience::CircuitOpen) -> Self {
        Self::from_layer(error.into())
    }
}

#[cfg(feature = "resilience")]
impl From<crate::resilience::BulkheadError> for HandlerError {
    fn from(error: crate::resilience::BulkheadError) -> Self {
        Self::from_layer(error.into())
    }
}

impl From<std::io::Error> for HandlerError {
    fn from(error: std::io::Error) -> Self {
        Self::retry(error)
    }
}

impl From<BoxError> for HandlerError {
    fn from(error: BoxError) -> Self {
        let error = match error.downcast::<sqlx::Error>() {
            Ok(error) => return (*error).into(),
            Err(error) => error,
        };
        match error.downcast::<serde_json::Error>() {
            Ok(error) => (*error).into(),
            Err(error) => Self::from_layer(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_error_means_is_decided_by_its_kind() {
        let io = || std::io::Error::other("reset");
        for (error, verdict) in [
            (
                HandlerError::from(sqlx::Error::Io(io())),
                Verdict::Unavailable,
            ),
            (
                HandlerError::from(sqlx::Error::PoolTimedOut),
                Verdict::Unavailable,
            ),
            (HandlerError::from(sqlx::Error::RowNotFound), Verdict::Retry),
            (
                HandlerError::from(serde_json::from_str::<u8>("x").expect_err("no number")),
                Verdict::DeadLetter,
            ),
            (HandlerError::from(io()), Verdict::Retry),
            (
                HandlerError::from(BoxError::from(sqlx::Error::PoolTimedOut)),
                Verdict::Unavailable,
            ),
            (
                HandlerError::from(BoxError::from(HandlerError::skip("x"))),
                Verdict::Skip,
            ),
            (
                HandlerError::from(PublishError::from(sqlx::Error::Io(io()))),
                Verdict::Unavailable,
            ),
            (
                HandlerError::from(PublishError::NoTransaction),
                Verdict::Retry,
            ),
            (
                HandlerError::from(PublishError::BatchTooLarge { bytes: 2, max: 1 }),
                Verdict::DeadLetter,
            ),
        ] {
            assert_eq!(error.verdict(), verdict, "{error:?}");
        }
    }

    #[test]
    fn only_what_the_library_cannot_decode_is_undecodable() {
        let codec = || CodecError::decode::<u8>("no number");
        let gzip = Undecodable::Format {
            format: "gzip data",
            source: codec(),
        };
        for undecodable in [Undecodable::Codec(codec()), gzip, Undecodable::NoData("u8")] {
            let error = HandlerError::undecodable(undecodable);
            assert!(error.is_undecodable() && error.verdict() == Verdict::DeadLetter);
            assert!(
                HandlerError::from_layer(error.into()).is_undecodable(),
                "through layers too"
            );
        }
        assert!(
            !HandlerError::from(codec()).is_undecodable(),
            "a handler's own decision counts"
        );
        assert!(!HandlerError::dead_letter("no").is_undecodable());
    }

    #[cfg(feature = "resilience")]
    #[test]
    fn an_event_that_was_turned_away_comes_back_and_loses_no_attempt() {
        use crate::resilience::CircuitOpen;
        let open = CircuitOpen {
            name: "warehouse".into(),
            retry_after: Duration::from_secs(3),
        };
        let later = Verdict::Snooze(Duration::from_secs(3));
        assert_eq!(HandlerError::from(open.clone()).verdict(), later);
        assert_eq!(
            HandlerError::from(BoxError::from(open.clone())).verdict(),
            later
        );
        assert_eq!(HandlerError::from_layer(open.into()).verdict(), later);
    }

    #[test]
    fn what_postgres_says_is_classified_by_sqlstate() {
        for (code, verdict) in [
            ("40001", Verdict::Retry),
            ("40P01", Verdict::Retry),
            ("55P03", Verdict::Retry),
            ("23505", Verdict::Retry),
            ("23503", Verdict::Retry),
            ("42P01", Verdict::Retry),
            ("22001", Verdict::DeadLetter),
            ("22P02", Verdict::DeadLetter),
            ("57P01", Verdict::Unavailable),
            ("57P03", Verdict::Unavailable),
            ("57P05", Verdict::Unavailable),
            ("25006", Verdict::Unavailable),
            ("53300", Verdict::Unavailable),
            ("08006", Verdict::Unavailable),
        ] {
            assert_eq!(of_sqlstate(code), verdict, "{code}");
        }
    }
}
