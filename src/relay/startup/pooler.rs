//! Detection of a pooler between the relay and Postgres that shares sessions.
//!
//! A relay cannot work through such a pooler. Its stream uses the replication protocol, its
//! sessions set how they commit, and it prepares and executes statements in the same session. It
//! therefore looks for a pooler first. The sign of a pooler is that two connections that are open
//! at the same time have the same backend, which never happens with a server.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::time::timeout;

use crate::{
    postgres::session,
    relay::{RelayOptions, SourceKind, error::Interruption},
};

/// Number of connections that are compared: a pooler may choose another idle backend for one of
/// them.
const LOOKS: usize = 3;

/// Time limit of the first response. A pooler without a free server connection accepts a client and
/// delays its first statement. A server that starts a process slowly still answers within this
/// time.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Refuses a pooler that shares sessions (PgBouncer in transaction or statement mode, Supavisor,
/// Neon's `-pooler` hosts).
///
/// # Errors
///
/// Returns the refusal with the remedy, or an error if the connection is lost.
pub(crate) async fn require_direct(options: &RelayOptions) -> Result<(), Interruption> {
    let mut sessions: Vec<(PgConnection, i32)> = Vec::with_capacity(LOOKS);
    for _ in 0..LOOKS {
        let (session, backend) = match look(options).await {
            Ok(looked) => looked,
            Err(error) if sessions.is_empty() => return Err(error),
            Err(error) => return Err(too_few(options, sessions.len(), &error)),
        };
        if sessions.iter().any(|(_, other)| *other == backend) {
            return Err(Interruption::Refused(format!(
                "{}:{} is a pooler that shares sessions, and a relay needs sessions of its own: \
                 set Postgres itself as the host of the database URL (publishers may use the \
                 pooler; docs/managed-postgres.md names each service's direct address)",
                options.database.host(),
                options.database.port()
            )));
        }
        sessions.push((session, backend));
    }
    close(sessions).await;
    Ok(())
}

/// Checks that the database allows the connections that a leader needs at the same time, in
/// addition to the one of the lease. A pooler accepts more connections and delays them.
///
/// # Errors
///
/// Returns [`Interruption::Connections`] if a connection cannot be opened.
/// [`Interruption::Connections`].
pub(crate) async fn require_connections(options: &RelayOptions) -> Result<(), Interruption> {
    let mut sessions = Vec::new();
    while sessions.len() + 1 < needed(options) {
        match look(options).await {
            Ok(looked) => sessions.push(looked),
            Err(error) => return Err(too_few(options, sessions.len() + 1, &error)),
        }
    }
    close(sessions).await;
    Ok(())
}

/// Returns the number of ordinary connections that a leader keeps open: the lease, the relay's row,
/// the table, and those that move scheduled events, delete published events and listen for new
/// ones. The creation of a slot temporarily takes up to two more.
fn needed(options: &RelayOptions) -> usize {
    let own_table = options.debezium.is_none();
    3 + usize::from(own_table)
        + usize::from(own_table && options.retention.enabled)
        + usize::from(options.source == SourceKind::Poll)
}

fn too_few(options: &RelayOptions, had: usize, error: &Interruption) -> Interruption {
    Interruption::Connections {
        had,
        needed: needed(options),
        reason: error.full(),
    }
}

/// Opens a session, and returns it with the process id of its backend.
async fn look(options: &RelayOptions) -> Result<(PgConnection, i32), Interruption> {
    let doing = "looking for a pooler";
    // A setting could become another client's, so the session has none.
    let session = session::unprepared(&options.database, "relay look").await;
    let mut session = session.map_err(Interruption::connecting(&options.database))?;
    // The simple protocol prepares no statement that another session could see.
    let row = sqlx::Executor::fetch_one(
        &mut session,
        sqlx::raw_sql("select pg_catalog.pg_backend_pid()"),
    );
    let row = match timeout(ANSWER_WITHIN, row).await {
        Ok(row) => row.map_err(Interruption::sql(doing))?,
        Err(_) => {
            return Err(Interruption::sql(doing)(sqlx::Error::Io(
                std::io::ErrorKind::TimedOut.into(),
            )));
        }
    };
    let backend = row.try_get(0).map_err(Interruption::sql(doing))?;
    Ok((session, backend))
}

async fn close(sessions: Vec<(PgConnection, i32)>) {
    for (session, _) in sessions {
        let _ = timeout(ANSWER_WITHIN, session.close()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connections_of_a_leader_depend_on_what_it_does() {
        let database =
            crate::postgres::DatabaseSettings::parse("postgres://a@localhost/b").expect("a URL");
        let mut options = RelayOptions::new(database, crate::kafka::Settings::default());
        assert_eq!(needed(&options), 5);
        options.source = SourceKind::Poll;
        assert_eq!(needed(&options), 6);
        options.retention.enabled = false;
        assert_eq!(needed(&options), 5);
        options.debezium = Some(crate::relay::DebeziumOutbox::new("public", "outbox"));
        assert_eq!(needed(&options), 4);
    }
}
