//! The connection to the server that streams the log: confirmations, and the time of its last
//! message.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::{
    failpoint::{self, Step},
    postgres::{
        Lsn,
        replication::{ReplicationError, StatusWriter},
    },
    relay::error::Interruption,
};

/// A server that has sent nothing for this time, although a reply was requested, is unreachable:
/// its machine or the network failed.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Time limit for a confirmation. It only waits for room in the socket, so a server that reads
/// nothing for this time hangs.
const CONFIRM_WITHIN: Duration = Duration::from_secs(20);

/// One stream.
pub(super) struct StreamLink {
    status: StatusWriter,
    last_message: Instant,
}

impl StreamLink {
    pub(super) fn new(status: StatusWriter) -> Self {
        Self {
            status,
            last_message: Instant::now(),
        }
    }

    /// Records that the server has sent a message.
    pub(super) fn on_server_message(&mut self) {
        self.last_message = Instant::now();
    }

    /// Confirms `log` to the server. Requests a reply after a third of [`SILENCE_MAX`] without a
    /// message.
    ///
    /// # Errors
    ///
    /// Returns an interruption if the connection is lost or the server does not respond.
    pub(super) async fn confirm(&mut self, log: Lsn) -> Result<(), Interruption> {
        let silence = self.last_message.elapsed();
        if silence > SILENCE_MAX {
            return Err(Interruption::replication("waiting for Postgres")(
                ReplicationError::Unanswered("a keepalive"),
            ));
        }
        let confirming = self.status.confirm(log, silence > SILENCE_MAX / 3);
        let confirmed = timeout(CONFIRM_WITHIN, confirming)
            .await
            .unwrap_or(Err(ReplicationError::Unanswered("a confirmation")));
        confirmed.map_err(Interruption::replication("confirming to Postgres"))?;
        failpoint::reached(Step::Confirmed);
        Ok(())
    }

    /// Ends the stream in an orderly way.
    pub(super) async fn finish(self) {
        self.status.finish().await;
    }
}
