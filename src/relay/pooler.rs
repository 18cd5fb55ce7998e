//! Whether there is a pooler between the relay and Postgres that shares sessions.
//!
//! A relay cannot work through one: its stream speaks the replication protocol, its sessions set how they commit, and what it prepares in one
//! session it executes in the same. So it looks for one before anything else, by what no server does by itself: two connections that are
//! open at once and have the same backend.

use sqlx::{Connection as _, Row as _};

use super::{RelayOptions, error::Interruption, ledger};

/// A pooler may take another idle backend than the last one: so often is looked.
const LOOKS: usize = 3;

/// Refuses a pooler that shares sessions (PgBouncer in transaction or statement mode, Supavisor, Neon's `-pooler` hosts).
///
/// # Errors
/// The refusal, with the remedy; a lost connection.
pub(super) async fn require_direct(options: &RelayOptions) -> Result<(), Interruption> {
    let doing = "looking for a pooler";
    let mut sessions = Vec::with_capacity(LOOKS);
    let mut backends: Vec<i32> = Vec::with_capacity(LOOKS);
    for _ in 0..LOOKS {
        let mut session = ledger::connect(options, "relay look").await?;
        // The simple protocol: nothing is prepared that another session could meet.
        let row = ledger::within(doing, sqlx::Executor::fetch_one(&mut session, sqlx::raw_sql("select pg_backend_pid()"))).await?;
        let backend: i32 = row.try_get(0).map_err(Interruption::sql(doing))?;
        if backends.contains(&backend) {
            return Err(Interruption::Refused(format!(
                "{}:{} is a pooler that shares sessions, and a relay needs its own: name Postgres itself in the database URL (publishers may use the pooler; docs/managed-postgres.md names each service's direct address)",
                options.database.host(),
                options.database.port()
            )));
        }
        backends.push(backend);
        sessions.push(session);
    }
    for session in sessions {
        let _ = session.close().await;
    }
    Ok(())
}
