//! Progress of a saga, stored beside its state. Steps are identified by name.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use tracing::Span;
use uuid::Uuid;

use crate::event::{Headers, headers};
use crate::postgres::encodable::ascii_text;
use crate::subscriber::Meta;
use crate::trace;

/// Status of a saga. Its words are also the values of the column `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SagaStatus {
    /// Another saga holds one of its locks, or it has just been started. It has done nothing yet.
    Waiting,
    /// Its steps are being executed.
    Running,
    /// A step failed, and the completed steps before it are being compensated.
    Compensating,
    /// All of its steps are done.
    Completed,
    /// A step failed, and all completed steps have been compensated.
    Compensated,
    /// A compensation failed, or a step after the pivot. The saga is neither done nor undone, and
    /// an operator must resolve it.
    Failed,
}

/// Error for a word that is not a [`SagaStatus`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is not a saga status")]
pub struct UnknownSagaStatus {
    /// The invalid word.
    pub word: String,
}

impl SagaStatus {
    /// All statuses.
    pub const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Running,
        Self::Compensating,
        Self::Completed,
        Self::Compensated,
        Self::Failed,
    ];

    /// Returns the word for this status in the table and in `tidings sagas`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Compensating => "compensating",
            Self::Completed => "completed",
            Self::Compensated => "compensated",
            Self::Failed => "failed",
        }
    }

    /// Returns `true` if the saga has ended. A failed saga can be retried by an operator.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::Compensated | Self::Failed)
    }
}

/// Failed step and its error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepFailure {
    /// The step.
    pub step: String,
    /// The reason of the refusal, the error, or the timeout.
    pub error: String,
}

/// Progress of a saga.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) status: SagaStatus,
    /// The steps that have not begun, as planned when the saga began.
    pub(crate) ahead: VecDeque<String>,
    pub(crate) current: Option<Current>,
    /// The steps that are done and not undone, in the order of their completion.
    pub(crate) done: Vec<String>,
    /// The steps that are undone, in the order of their compensation.
    #[serde(default)]
    pub(crate) undone: Vec<String>,
    /// The pivot is done, so the saga only moves forward.
    #[serde(default)]
    pub(crate) pivoted: bool,
    /// The failure that stopped the forward direction.
    #[serde(default)]
    pub(crate) failure: Option<StepFailure>,
    /// The compensations that failed.
    #[serde(default)]
    pub(crate) failed_compensations: Vec<StepFailure>,
    /// All commands sent so far. They distinguish a reply to the current step from a late reply to
    /// another step.
    #[serde(default)]
    pub(crate) commands: Vec<Command>,
    /// Time limit for passing the pivot or ending.
    #[serde(default)]
    pub(crate) deadline: Option<DateTime<Utc>>,
    #[serde(default)]
    pub(crate) cause: Cause,
    /// Statistics of the current transition, counted when it commits.
    #[serde(skip)]
    pub(crate) happened: Vec<Happened>,
}

/// Event that last moved the saga. It is the cause of all events that the saga sends, including
/// those sent later by a timer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cause {
    event: Option<String>,
    traceparent: Option<String>,
    tracestate: Option<String>,
    baggage: Option<String>,
}

/// Countable occurrence in a transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    /// The saga has its locks and begins.
    Begun,
    /// A step is done or undone. `took` is the time including all attempts.
    Done {
        step: String,
        back: bool,
        took: TimeDelta,
    },
    /// A step was retried.
    Retried {
        step: String,
        back: bool,
    },
    /// An attempt of a step timed out.
    TimedOut {
        step: String,
        back: bool,
    },
    Ended(SagaStatus),
}

/// Step that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Current {
    pub(crate) step: String,
    /// The step is being compensated.
    pub(crate) back: bool,
    /// Number of attempts since the step began, or since an operator retried it.
    pub(crate) attempts: u32,
    /// Number of commands sent.
    pub(crate) sent: u32,
    /// The step waits for its next attempt rather than for a reply.
    pub(crate) paused: bool,
    /// Time of the next attempt, or of the timeout.
    pub(crate) due: Option<DateTime<Utc>>,
    /// Start time of the step.
    #[serde(default)]
    pub(crate) began: Option<DateTime<Utc>>,
    /// Error of the last attempt.
    #[serde(default)]
    pub(crate) error: Option<String>,
}

/// Command that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Command {
    pub(crate) id: Uuid,
    pub(crate) step: String,
    pub(crate) back: bool,
}

impl Progress {
    /// Returns `true` if a command of a step other than the current one caused the event.
    pub(crate) fn is_of_another_step(&self, cause: Option<Uuid>) -> bool {
        let command =
            cause.and_then(|cause| self.commands.iter().find(|command| command.id == cause));
        let Some((command, current)) = command.zip(self.current.as_ref()) else {
            return false;
        };
        command.step != current.step || command.back != current.back
    }

    /// Returns the JSON for a database whose encoding may lack characters of the errors. The type
    /// `jsonb` refuses such characters and their escapes. Returns `None` if the errors are ASCII:
    /// `json`, the JSON of this progress, can then be stored.
    ///
    /// # Errors
    ///
    /// Returns the serializer's error.
    pub(crate) fn ascii_json(&self, json: &str) -> Result<Option<String>, serde_json::Error> {
        if json.is_ascii() {
            return Ok(None);
        }
        let mut ascii = self.clone();
        let failures = ascii.failed_compensations.iter_mut();
        let failures = failures.chain(&mut ascii.failure);
        let errors = failures.map(|failure| &mut failure.error);
        let attempt = ascii.current.iter_mut().filter_map(|at| at.error.as_mut());
        let mut is_changed = false;
        for error in errors.chain(attempt).filter(|error| !error.is_ascii()) {
            *error = ascii_text(error);
            is_changed = true;
        }
        match is_changed {
            true => serde_json::to_string(&ascii).map(Some),
            false => Ok(None),
        }
    }

    /// Returns the error in one line.
    pub(crate) fn error(&self) -> Option<String> {
        let attempt = self
            .current
            .as_ref()
            .and_then(|current| Some(format!("{}: {}", current.step, current.error.as_ref()?)));
        let compensations = self
            .failed_compensations
            .iter()
            .map(|failed| format!("compensation of {}: {}", failed.step, failed.error));
        let failure = self
            .failure
            .iter()
            .map(|failure| format!("{}: {}", failure.step, failure.error));
        let all: Vec<String> = failure.chain(compensations).collect();
        if all.is_empty() {
            attempt
        } else {
            Some(all.join("; "))
        }
    }
}

impl Cause {
    /// Records an event as the cause. An event without trace headers keeps the trace of the
    /// previous cause. Trace headers that are not visible ASCII violate W3C Trace Context and are
    /// ignored, because not every database could store them.
    pub(crate) fn moved_by(&mut self, meta: &Meta) {
        let is_visible = |text: &&str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        self.event = Some(meta.event_id().into_owned());
        if let Some(traceparent) = meta.traceparent().filter(is_visible) {
            self.traceparent = Some(traceparent.to_owned());
            self.tracestate = meta.tracestate().filter(is_visible).map(str::to_owned);
            self.baggage = meta
                .header(headers::BAGGAGE)
                .filter(is_visible)
                .map(str::to_owned);
        }
    }

    /// Makes a span continue the trace of the cause, unless it is a child of another span.
    pub(super) fn continue_trace(&self, span: &Span) {
        trace::continue_trace(
            span,
            self.traceparent.as_deref(),
            self.tracestate.as_deref(),
        );
    }

    /// Returns the headers of an event with this cause and this correlation id. Omits values with
    /// a control character: no event may have them, so the saga could never publish another one.
    pub(crate) fn headers(&self, correlation_id: String) -> Headers {
        let caused = [
            (headers::CAUSATION_ID, &self.event),
            (headers::TRACEPARENT, &self.traceparent),
            (headers::TRACESTATE, &self.tracestate),
            (headers::BAGGAGE, &self.baggage),
        ];
        let caused = caused
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.clone()?)));
        caused
            .chain([(headers::CORRELATION_ID, correlation_id)])
            .filter(|(_, value)| !value.chars().any(char::is_control))
            .collect()
    }
}

// === impl SagaStatus ===

impl fmt::Display for SagaStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for SagaStatus {
    type Err = UnknownSagaStatus;

    fn from_str(word: &str) -> Result<Self, UnknownSagaStatus> {
        Self::ALL
            .into_iter()
            .find(|status| status.word() == word)
            .ok_or_else(|| UnknownSagaStatus {
                word: word.to_owned(),
            })
    }
}
