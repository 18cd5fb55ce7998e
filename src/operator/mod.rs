//! Operations on relays: move one, remove one, decide about its parked events, grow a topic.
//! Operations on subscribers: pause one, decide about its parked events and dead letters.
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
//! | `parked` | decisions about parked events of relays |
//! | `subscribers` | pauses and resumes subscribers |
//! | `subscriber_parked` | decisions about parked events of subscribers |
//! | `dead_letters` | replays and discards dead letters |
//! | `scheduled` | cancels scheduled events |

mod adopt;
mod dead_letters;
mod forget;
mod growth;
mod lease;
mod moves;
pub(crate) mod parked;
mod scheduled;
mod subscriber_parked;
mod subscribers;

use sqlx::PgConnection;

pub(crate) use dead_letters::{
    LetterDecision, LetterOutcome, LetterProgress, count_letters, decide_letters,
};
pub(crate) use forget::forget;
pub(crate) use growth::{Hold, Unacknowledged, hold, not_acknowledged, pin, release};
pub(crate) use moves::{Move, Moved, move_relay};
pub(crate) use scheduled::cancel_scheduled;
pub(crate) use subscriber_parked::{Marked, decide_parked, undone_parked};
pub(crate) use subscribers::{PauseChange, pause_subscriber, resume_subscriber};

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

/// Ends the transaction of a command, which changes all or nothing.
async fn end_transaction(
    session: &mut PgConnection,
    commits: bool,
    doing: &'static str,
) -> Result<(), OperatorError> {
    let end = if commits { "commit" } else { "rollback" };
    sqlx::raw_sql(end)
        .execute(session)
        .await
        .map(|_| ())
        .map_err(OperatorError::sql(doing))
}

impl OperatorError {
    pub(crate) fn sql(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Sql {
            doing,
            source: crate::postgres::errors::cleaned(source),
        }
    }
}
