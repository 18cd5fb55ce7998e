//! The end of a source: a shutdown or an interruption.

use crate::{
    postgres::replication::DecodeError,
    relay::{error::Interruption, row::native::RowError},
};

/// The reason why a source stops.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The relay is shut down.
    Shutdown,
    /// The session ends. The supervisor decides how the relay continues.
    Interrupted(Interruption),
}

impl From<Interruption> for Stop {
    fn from(interruption: Interruption) -> Self {
        Self::Interrupted(interruption)
    }
}

impl From<RowError> for Stop {
    fn from(error: RowError) -> Self {
        Self::Interrupted(error.into())
    }
}

impl From<DecodeError> for Stop {
    fn from(error: DecodeError) -> Self {
        Self::Interrupted(error.into())
    }
}
