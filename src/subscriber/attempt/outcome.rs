//! Outcome of an event, and the steps that lead to it.

use std::time::Duration;

use super::dead_letter::REFUSED_PAUSE;

/// Outcome of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The event is done and is not needed again.
    Finished,
    /// The event must be parked with the later events of its aggregate, after this number of
    /// attempts. The last attempt failed with this error.
    Park { attempts: u32, error: String },
    /// Another version of the code can handle the event. Until then it must be parked with the
    /// later events of its aggregate.
    Waits { error: String },
    /// The broker rejects the dead letter of the event. The event must be parked until the settings
    /// of the dead letter topic change.
    Refused { attempts: u32, error: String },
    /// A parked event is tried again after this time.
    Again {
        after: Duration,
        attempts: u32,
        error: String,
    },
    /// The partition is revoked or the subscriber stops. The next owner of the partition handles
    /// the event.
    Abandoned,
}

impl Settled {
    /// Returns the outcome for an event that is already parked and has failed `before` times there.
    pub(crate) fn of_parked(self, before: u32) -> Self {
        match self {
            Self::Refused { error, .. } => Self::Again {
                after: REFUSED_PAUSE,
                attempts: before,
                error,
            },
            other => other,
        }
    }
}

/// The place where a message waits between two attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Lane,
    /// The table of parked events, where it has failed `before` times.
    Table {
        before: u32,
    },
}

impl Place {
    pub(super) fn before(self) -> u32 {
        match self {
            Self::Lane => 0,
            Self::Table { before } => before,
        }
    }

    /// Waits for the next attempt, after `failed` attempts.
    pub(super) fn again(
        self,
        after: Duration,
        failed: u32,
        error: impl FnOnce() -> String,
    ) -> Then {
        match self {
            Self::Lane => Then::Pause(after),
            Self::Table { before } => Then::Return(Settled::Again {
                after,
                attempts: before + failed,
                error: error(),
            }),
        }
    }
}

/// What follows a failed attempt.
pub(super) enum Then {
    Pause(Duration),
    Return(Settled),
    /// The event shares its identity with another event that was handled.
    Conflicting,
    /// The attempts are used up, and the escalation decides.
    Escalate,
    /// The attempts of a parked event are used up.
    DeadLetter,
    /// The kill switch has tripped.
    Probe,
}

/// A failed batch. Its events must be handled one by one. `attempts` is the number of failed
/// attempts that count against them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchFailed {
    pub(crate) attempts: u32,
}
