//! Connection in replication mode: startup, simple queries, and the start of streaming.

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
use crate::postgres::{DatabaseSettings, Lsn, session};

/// Timeout of a command that does not wait for other transactions.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A connection in replication mode that is not streaming.
pub(crate) struct Connection {
    wire: Wire,
}

impl Connection {
    /// Connects with `replication=database`, so that the walsender also accepts SQL.
    ///
    /// # Errors
    ///
    /// Returns an error if the server is unreachable within the settings' `connect_timeout`, TLS
    /// fails, or the server refuses the role.
    pub(crate) async fn open(
        settings: &DatabaseSettings,
        application_name: &str,
    ) -> Result<Self, ReplicationError> {
        let mut startup = BytesMut::new();
        let fixed = [
            ("user", settings.user()),
            ("database", settings.database()),
            ("replication", "database"),
            ("application_name", application_name),
            ("client_encoding", "UTF8"),
            // The text formats of the stream must not depend on the role's settings.
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

    /// Runs one command with the simple protocol. Returns the rows as text, with `None` for an SQL
    /// null.
    ///
    /// # Errors
    ///
    /// Returns the server's error, or an error if there is no response in time or the connection is
    /// lost.
    pub(crate) async fn query(&mut self, command: &str) -> Result<TextRows, ReplicationError> {
        timeout(ANSWER_WITHIN, self.query_unbounded(command))
            .await
            .unwrap_or(Err(ReplicationError::Unanswered("a result")))
    }

    /// Same as [`query`](Self::query), for a command that may wait for other transactions. The
    /// caller must limit or monitor the wait.
    ///
    /// # Errors
    ///
    /// Returns the server's error, or an error if the connection is lost.
    pub(crate) async fn query_unbounded(
        &mut self,
        command: &str,
    ) -> Result<TextRows, ReplicationError> {
        let mut out = BytesMut::new();
        frontend::query(command, &mut out)?;
        self.wire.send(&out).await?;
        self.wire.until_ready().await
    }

    /// Starts streaming at `from`, or at the slot's position if that is later.
    ///
    /// # Errors
    ///
    /// Returns the server's error (the slot is missing or active), or an error if there is no
    /// response in time or the connection is lost.
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
            "START_REPLICATION SLOT \"{slot}\" LOGICAL {from} (proto_version '1', \
             publication_names '\"{}\"', binary 'true')",
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
