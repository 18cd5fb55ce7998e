//! Operations on relays: move one, remove one, list standbys, grow a topic.
//!
//! Only a running relay has its current position. A command that moves or removes a relay therefore
//! takes its lease first, so that the relay cannot run, and increments its epoch, so that a
//! suspended leader that resumes cannot write. The relay applies a move at its next start.
//!
//! | file | content |
//! |---|---|
//! | `lease` | takes the lease for a command, or reports the leader |
//! | `moves` | `rewind` and `skip`: the new position, and the affected events |
//! | `adopt` | a database continues the outbox of another one |
//! | `forget` | removes everything that a relay leaves behind |
//! | `growth` | adds partitions to a topic, once consumers have drained it |
//! | `standby` | the processes that lead or wait for a lease |

mod adopt;
mod forget;
mod growth;
mod lease;
mod moves;
mod standby;

pub(crate) use forget::forget;
pub(crate) use growth::{Hold, PinnedTopic, hold, not_acknowledged, pin, release, topics};
pub(crate) use moves::{Move, Moved, move_relay};
pub(crate) use standby::sessions;

/// Error of an operation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperatorError {
    /// The operator has to act, as the text describes.
    #[error("{0}")]
    Refused(String),
    /// A query failed.
    #[error("{doing}")]
    Sql {
        doing: &'static str,
        #[source]
        source: sqlx::Error,
    },
}

impl OperatorError {
    fn sql(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Sql {
            doing,
            source: crate::postgres::errors::cleaned(source),
        }
    }
}
