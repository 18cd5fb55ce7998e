//! Where a saga stands: what is stored beside its state. Steps are known by name.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::event::{Headers, headers};
use crate::subscriber::Meta;

/// What becomes of a saga, in words that are also its `status` in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SagaStatus {
    /// Another saga holds what it locks; it has done nothing yet.
    Waiting,
    /// Its steps are being done.
    Running,
    /// A step failed, and those before it are being undone.
    Compensating,
    /// All of its steps are done.
    Completed,
    /// A step failed, and all that was done is undone.
    Compensated,
    /// A compensation failed, or a step behind the pivot: it is neither done nor undone, and a person has to look.
    Failed,
}

/// A word that is no [`SagaStatus`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is no status of a saga")]
pub struct UnknownSagaStatus {
    /// The word.
    pub word: String,
}

impl SagaStatus {
    /// Each of them.
    pub const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Running,
        Self::Compensating,
        Self::Completed,
        Self::Compensated,
        Self::Failed,
    ];

    /// The word in the table and in `tidings sagas`.
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

    /// It is over, unless a person retries it.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::Compensated | Self::Failed)
    }
}

/// What went wrong, and at which step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepFailure {
    /// The step.
    pub step: String,
    /// In the words of the refusal, of the error, or of the timeout.
    pub error: String,
}

/// Where a saga stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) status: SagaStatus,
    /// The steps that are not begun, as they were planned when the saga began.
    pub(crate) ahead: VecDeque<String>,
    pub(crate) current: Option<Current>,
    /// The steps that are done and not undone, in the order in which they were done.
    pub(crate) done: Vec<String>,
    /// The steps that are undone, in the order in which they were.
    #[serde(default)]
    pub(crate) undone: Vec<String>,
    /// From here on it only goes forward.
    #[serde(default)]
    pub(crate) pivoted: bool,
    /// Why it does not go forward.
    #[serde(default)]
    pub(crate) failure: Option<StepFailure>,
    /// The compensations that failed.
    #[serde(default)]
    pub(crate) failed_compensations: Vec<StepFailure>,
    /// Everything that was sent: it tells the reply to a step from a late one to another.
    #[serde(default)]
    pub(crate) commands: Vec<Command>,
    /// Until when it must have passed its pivot, or have ended.
    #[serde(default)]
    pub(crate) deadline: Option<DateTime<Utc>>,
    #[serde(default)]
    pub(crate) cause: Cause,
    /// What is to be counted of the transition that is under way.
    #[serde(skip)]
    pub(crate) happened: Vec<Happened>,
}

/// The event that moved the saga last: the cause of what it sends, also of what it sends later because time has passed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cause {
    event: Option<String>,
    traceparent: Option<String>,
    tracestate: Option<String>,
}

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    /// It has what it locks.
    Begun,
    /// A step is done, or undone; how long that took with all its attempts.
    Done {
        step: String,
        back: bool,
        took: TimeDelta,
    },
    /// A step was tried again.
    Retried {
        step: String,
        back: bool,
    },
    /// A step had no reply, or had not ended, in time.
    TimedOut {
        step: String,
        back: bool,
    },
    Ended(SagaStatus),
}

/// A step that is begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Current {
    pub(crate) step: String,
    /// It is being undone.
    pub(crate) back: bool,
    /// How often it was tried since it began, or since a person retried it.
    pub(crate) attempts: u32,
    /// How many commands it has sent.
    pub(crate) sent: u32,
    /// It waits for its next attempt, and not for a reply.
    pub(crate) paused: bool,
    /// When it is tried again, or taken to have failed.
    pub(crate) due: Option<DateTime<Utc>>,
    /// When it was begun.
    #[serde(default)]
    pub(crate) began: Option<DateTime<Utc>>,
    /// What the last attempt failed with.
    #[serde(default)]
    pub(crate) error: Option<String>,
}

/// A command that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Command {
    pub(crate) id: Uuid,
    pub(crate) step: String,
    pub(crate) back: bool,
}

impl Progress {
    /// True if a command of another step than the present one caused the event.
    pub(crate) fn is_of_another_step(&self, cause: Option<Uuid>) -> bool {
        let command =
            cause.and_then(|cause| self.commands.iter().find(|command| command.id == cause));
        let Some((command, current)) = command.zip(self.current.as_ref()) else {
            return false;
        };
        command.step != current.step || command.back != current.back
    }

    /// Why it is where it is, in one line.
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
    /// This event moves it. One that bears no trace goes on with the one before.
    pub(crate) fn moved_by(&mut self, meta: &Meta) {
        self.event = Some(meta.event_id().into_owned());
        if let Some(traceparent) = meta.traceparent() {
            self.traceparent = Some(traceparent.to_owned());
            self.tracestate = meta.tracestate().map(str::to_owned);
        }
    }

    /// What an event that it causes, in this conversation, bears.
    pub(crate) fn headers(&self, correlation_id: String) -> Headers {
        let caused = [
            (headers::CAUSATION_ID, &self.event),
            (headers::TRACEPARENT, &self.traceparent),
            (headers::TRACESTATE, &self.tracestate),
        ];
        let caused = caused
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.clone()?)));
        caused
            .chain([(headers::CORRELATION_ID, correlation_id)])
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
