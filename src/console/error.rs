//! Error of a read or an action, as text for the page and the log.

use crate::inspect::InspectError;
use crate::operator::OperatorError;
use crate::postgres::errors::with_causes;

/// Error of a read or an action. The text is not escaped: parts of it come from servers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct ConsoleError(String);

impl ConsoleError {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns an error with its causes.
    pub(super) fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        Self(with_causes(error))
    }
}

// === impl From ===

impl From<OperatorError> for ConsoleError {
    fn from(error: OperatorError) -> Self {
        Self::of(&error)
    }
}

impl From<InspectError> for ConsoleError {
    /// Adds the remedy.
    fn from(error: InspectError) -> Self {
        let remedy = match error {
            InspectError::Missing { .. } => "; run `tidings migrate`, or set another --schema",
            InspectError::Denied { .. } => "; grant select on the tables to the console's role",
            InspectError::Kafka { .. } | InspectError::Database(_) => "",
        };
        Self(format!("{}{remedy}", with_causes(&error)))
    }
}
