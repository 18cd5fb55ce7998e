//! What a person does with relays: moves one, forgets one, sees who stands by, grows a topic.
//!
//! A running relay alone knows where it is. So what moves or removes one first takes its lease, which no relay can have then, and raises its
//! epoch: a leader that was stopped and wakes up writes nothing any more. The relay takes a move over at its next start.
//!
//! | | |
//! |---|---|
//! | `lease` | nobody leads while a command works, or who does |
//! | `moves` | `rewind` and `skip`: where to, and how many events that repeats or leaves out |
//! | `adopt` | a database continues the outbox of another one |
//! | `forget` | everything that a relay has left behind |
//! | `growth` | a topic gets more partitions, once consumers have drained it |
//! | `standby` | the processes that wait for a lease |

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

/// Why a command cannot do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperatorError {
    /// Only a person can put it right; the text says what.
    #[error("{0}")]
    Refused(String),
    /// The database could not be asked.
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
