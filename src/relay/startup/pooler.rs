//! Whether there is a pooler between the relay and Postgres that shares sessions.
//!
//! A relay cannot work through one: its stream speaks the replication protocol, its sessions set how they commit, and what it prepares in one
//! session it executes in the same. So it looks for one before anything else, by what no server does by itself: two connections that are
//! open at once and have the same backend.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::time::timeout;

use crate::{
    postgres::session,
    relay::{RelayOptions, SourceKind, error::Interruption},
};

/// A pooler may take another idle backend than the last one: so often is looked.
const LOOKS: usize = 3;

/// A pooler without a free server connection accepts a client and lets its first statement wait. A server that is slow to
/// start a process answers within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Refuses a pooler that shares sessions (PgBouncer in transaction or statement mode, Supavisor, Neon's `-pooler` hosts).
///
/// # Errors
/// The refusal, with the remedy; a lost connection.
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
                "{}:{} is a pooler that shares sessions, and a relay needs its own: name Postgres itself in the database URL (publishers may use the pooler; docs/managed-postgres.md names each service's direct address)",
                options.database.host(),
                options.database.port()
            )));
        }
        sessions.push((session, backend));
    }
    close(sessions).await;
    Ok(())
}

/// Makes sure that the database gives a leader as many connections as it needs at once, beside the one of the lease. A pooler
/// accepts more and lets them wait.
///
/// # Errors
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

/// Ordinary connections that a leader keeps open: the lease, its row and the table, and what moves scheduled events, deletes
/// published ones and listens for new ones. Making a slot takes up to two more for a while.
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

/// A session, and the server's process that serves it.
async fn look(options: &RelayOptions) -> Result<(PgConnection, i32), Interruption> {
    let doing = "looking for a pooler";
    // A setting could become another client's.
    let session = session::unprepared(&options.database, "relay look").await;
    let mut session = session.map_err(Interruption::connecting(&options.database))?;
    // The simple protocol: nothing is prepared that another session could meet.
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
        let database = crate::postgres::Settings::parse("postgres://a@localhost/b").expect("a URL");
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
