//! A connection in replication mode: start-up, simple queries, and the change into streaming.

use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::time::timeout;

use super::{
    ReplicationError,
    dial::{Dialled, dial},
    stream::{FrameReader, StatusWriter},
    wire::{TextRows, Wire},
};
use crate::postgres::{Lsn, Settings, session};

/// How long the server may take to answer a command that does not wait for other transactions.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A connection in replication mode that is not streaming.
pub(crate) struct Connection {
    wire: Wire,
}

impl Connection {
    /// Connects with `replication=database`, so that the walsender also answers SQL.
    ///
    /// # Errors
    /// When the server cannot be reached within the settings' `connect_timeout`, TLS fails, or the role is refused.
    pub(crate) async fn open(
        settings: &Settings,
        application_name: &str,
    ) -> Result<Self, ReplicationError> {
        let mut startup = BytesMut::new();
        let fixed = [
            ("user", settings.user()),
            ("database", settings.database()),
            ("replication", "database"),
            ("application_name", application_name),
            ("client_encoding", "UTF8"),
            // The stream's text forms must not depend on the role's settings.
            ("DateStyle", "ISO"),
            ("TimeZone", "UTC"),
        ];
        let options = settings
            .options()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        frontend::startup_message(fixed.into_iter().chain(options), &mut startup)?;
        let Dialled { mut wire, .. } = dial(settings, &startup).await?;
        timeout(ANSWER_WITHIN, wire.until_ready())
            .await
            .unwrap_or(Err(ReplicationError::Unanswered("its parameters")))?;
        let mut connection = Self { wire };
        connection.query(session::PREPARE).await?;
        Ok(connection)
    }

    /// Runs one command by the simple protocol; the rows as text, SQL null as `None`.
    ///
    /// # Errors
    /// The server's error, no answer in time, or a lost connection.
    pub(crate) async fn query(&mut self, command: &str) -> Result<TextRows, ReplicationError> {
        timeout(ANSWER_WITHIN, self.query_unbounded(command))
            .await
            .unwrap_or(Err(ReplicationError::Unanswered("a result")))
    }

    /// The same for a command that may wait for transactions of others. The caller must bound or watch the wait.
    ///
    /// # Errors
    /// The server's error, or a lost connection.
    pub(crate) async fn query_unbounded(
        &mut self,
        command: &str,
    ) -> Result<TextRows, ReplicationError> {
        let mut out = BytesMut::new();
        frontend::query(command, &mut out)?;
        self.wire.send(&out).await?;
        self.wire.until_ready().await
    }

    /// Starts streaming from `from` (or from where the slot stands, if that is further).
    ///
    /// # Errors
    /// The server's error (slot missing or active), no answer in time, or a lost connection.
    pub(crate) async fn stream(
        self,
        slot: &str,
        publication: &str,
        from: Lsn,
    ) -> Result<(FrameReader, StatusWriter), ReplicationError> {
        let starting = timeout(
            ANSWER_WITHIN,
            self.start_replication(slot, publication, from),
        );
        starting
            .await
            .unwrap_or(Err(ReplicationError::Unanswered("a stream")))
    }

    async fn start_replication(
        mut self,
        slot: &str,
        publication: &str,
        from: Lsn,
    ) -> Result<(FrameReader, StatusWriter), ReplicationError> {
        let command = format!(
            "START_REPLICATION SLOT \"{slot}\" LOGICAL {from} (proto_version '1', publication_names '\"{}\"', binary 'true')",
            publication.replace('"', "\"\"").replace('\'', "''"),
        );
        let mut out = BytesMut::new();
        frontend::query(&command, &mut out)?;
        self.wire.send(&out).await?;
        self.wire.copy_both().await?;
        let (socket, read) = self.wire.into_parts();
        let (reader, writer) = tokio::io::split(socket);
        Ok((FrameReader::new(reader, &read), StatusWriter::new(writer)))
    }
}
