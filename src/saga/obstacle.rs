//! Reasons why the code of this process cannot continue a saga that another version may be able to
//! continue. Pure.
//!
//! Such a saga is left unchanged: no step is skipped, abandoned or overwritten. The reason is
//! stored in the column `obstacle`, and `tidings sagas list`, `tidings check` and the health check
//! report it.

use std::fmt;

use super::machine::Unknown;

/// A reason why this code cannot continue a saga.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// The code lacks steps of the saga.
    Unknown { unknown: Unknown, version: u32 },
    /// The code cannot read the saga's state.
    State {
        stored_by: u32,
        version: u32,
        error: String,
    },
    /// The library cannot read the saga's progress.
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
                    "its current step `{step}` does not exist in version {version}; deploy code \
                     with the step, marked `retired` if new sagas must not run it"
                )
            }
            Self::Unknown {
                unknown: Unknown::Plan(steps),
                version,
            } => write!(
                f,
                "version {version} has none of its steps ({}): another definition started it; \
                 deploy code with these steps, marked `retired` if new sagas must not run them",
                steps.join(", ")
            ),
            Self::State {
                stored_by,
                version,
                error,
            } => write!(
                f,
                "version {version} cannot read its state, which version {stored_by} stored: \
                 {error}; deploy code that can read it, with `Saga::lift` or with serde defaults"
            ),
            Self::Progress { error } => {
                write!(
                    f,
                    "this version of tidings cannot read its progress: {error}; deploy the version \
                     of tidings that wrote it"
                )
            }
        }
    }
}
