//! The reasons for which the code of this process cannot continue a saga, although another version could. Pure.
//!
//! Such a saga is left alone: nothing of it is skipped, given up or overwritten. The reason is stored in the column `obstacle`, where
//! `tidings sagas list`, `tidings check` and the health check find it.

use std::fmt;

use super::machine::Unknown;

/// A reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// Steps that the code does not have.
    Unknown { unknown: Unknown, version: u32 },
    /// The code cannot read its state.
    State {
        stored_by: u32,
        version: u32,
        error: String,
    },
    /// The library cannot read where it stands.
    Progress { error: String },
}

// === impl Display ===

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown {
                unknown: Unknown::Step(step),
                version,
            } => {
                write!(
                    f,
                    "it stands at the step `{step}`, which version {version} does not have: deploy code with the step, `retired` if need be"
                )
            }
            Self::Unknown {
                unknown: Unknown::Plan(steps),
                version,
            } => write!(
                f,
                "version {version} has none of its steps ({}): another definition started it; deploy code with these steps, `retired` if need be",
                steps.join(", ")
            ),
            Self::State {
                stored_by,
                version,
                error,
            } => write!(
                f,
                "version {version} cannot read its state, which version {stored_by} has stored: {error}; deploy code that can, by `lift` or by \
                 defaults"
            ),
            Self::Progress { error } => {
                write!(
                    f,
                    "this version of tidings cannot read where it stands: {error}; deploy the version that has written it"
                )
            }
        }
    }
}
