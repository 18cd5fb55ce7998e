//! Refused offset commits, and the refusals that are retried.
//!
//! A classic group refuses commits between the last `JoinGroup` of a rebalance and the leader's
//! `SyncGroup`, and librdkafka returns this refusal to its caller. A member that gives up its
//! partitions must retry the commit. Otherwise the next owner would handle the same records again.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// Error of an offset commit.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct CommitError(#[from] KafkaError);

impl CommitError {
    /// Returns `true` if the same commit may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        use RDKafkaErrorCode as Code;
        // The coordinator is completing a rebalance or has moved, the client has not received the
        // next generation or epoch yet, or the connection was lost.
        matches!(
            self.0.rdkafka_error_code(),
            Some(
                Code::RebalanceInProgress
                    | Code::IllegalGeneration
                    | Code::StaleMemberEpoch
                    | Code::CoordinatorLoadInProgress
                    | Code::CoordinatorNotAvailable
                    | Code::NotCoordinator
                    | Code::WaitingForCoordinator
                    | Code::RequestTimedOut
                    | Code::OperationTimedOut
                    | Code::BrokerTransportFailure
            )
        )
    }
}

/// Calls `commit` until it succeeds, fails permanently, or `pause` returns `false`.
pub(super) fn repeat_while_transient(
    mut commit: impl FnMut() -> Result<(), CommitError>,
    mut pause: impl FnMut() -> bool,
) -> Result<(), CommitError> {
    loop {
        match commit() {
            Err(error) if error.is_transient() && pause() => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commits against these responses. Returns the number of attempts and the result.
    fn run(
        responses: &[Option<RDKafkaErrorCode>],
        pauses: usize,
    ) -> (usize, Option<RDKafkaErrorCode>) {
        let (mut attempts, mut paused) = (0, 0);
        let commit = || {
            attempts += 1;
            responses[attempts - 1]
                .map_or(Ok(()), |code| Err(KafkaError::ConsumerCommit(code).into()))
        };
        let pause = || {
            paused += 1;
            paused <= pauses
        };
        let result = repeat_while_transient(commit, pause);
        (
            attempts,
            result.err().and_then(|error| error.0.rdkafka_error_code()),
        )
    }

    #[test]
    fn a_commit_that_a_rebalance_refuses_is_repeated_until_it_succeeds() {
        use RDKafkaErrorCode::{IllegalGeneration, RebalanceInProgress};
        assert_eq!(
            run(
                &[Some(RebalanceInProgress), Some(IllegalGeneration), None],
                9
            ),
            (3, None)
        );
    }

    #[test]
    fn a_commit_that_is_refused_for_good_is_not_repeated() {
        use RDKafkaErrorCode::{GroupAuthorizationFailed, RebalanceInProgress, UnknownMemberId};
        assert_eq!(run(&[Some(UnknownMemberId)], 9), (1, Some(UnknownMemberId)));
        assert_eq!(
            run(&[Some(GroupAuthorizationFailed)], 9),
            (1, Some(GroupAuthorizationFailed))
        );
        assert_eq!(
            run(&[Some(RebalanceInProgress); 3], 2),
            (3, Some(RebalanceInProgress))
        );
    }
}
