//! The connection to a server that streams its log: confirmations, and the time since its last message.

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

/// A server that was asked for a reply and has sent nothing for this long is unreachable: its machine or the network failed.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A confirmation waits only for room in the socket. A server that reads nothing for this long hangs.
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

    /// Records that the server has sent something.
    pub(super) fn on_server_message(&mut self) {
        self.last_message = Instant::now();
    }

    /// Confirms `log` to the server. Requests a reply if the server has been silent for long.
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

    /// Ends the stream in order.
    pub(super) async fn finish(self) {
        self.status.finish().await;
    }
}
