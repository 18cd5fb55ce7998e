//! Processes that lead or wait for a lease. Each is identified by the application name of its
//! session.

use sqlx::PgConnection;

use crate::relay::leadership::lease::SESSION_PREFIX;

/// A process of a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) relay: String,
    /// `host:pid`. The host is shortened if the name does not fit.
    pub(crate) process: String,
    /// Process id of the session on the server.
    pub(crate) pid: i32,
    /// The process holds the lease. Otherwise it waits for it.
    pub(crate) leads: bool,
}

/// Returns every process that leads or waits in this database.
///
/// # Errors
///
/// Returns an error if the query fails.
pub(crate) async fn sessions(session: &mut PgConnection) -> Result<Vec<Session>, sqlx::Error> {
    let rows: Vec<(i32, String, bool)> = sqlx::query_as(
        "select a.pid, a.application_name::text,
            exists (
              select from pg_locks l
              where l.pid = a.pid and l.locktype = 'advisory' and l.granted
            )
         from pg_stat_activity a
         where a.datname = current_database() and starts_with(a.application_name, $1)
         order by a.backend_start",
    )
    .bind(SESSION_PREFIX)
    .fetch_all(session)
    .await?;
    Ok(rows
        .into_iter()
        .filter_map(|(pid, name, leads)| read(pid, &name, leads))
        .collect())
}

fn read(pid: i32, application: &str, leads: bool) -> Option<Session> {
    let (relay, process) = application.strip_prefix(SESSION_PREFIX)?.split_once(' ')?;
    Some(Session {
        relay: relay.to_owned(),
        process: process.to_owned(),
        pid,
        leads,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::leadership::lease::session_name;

    #[test]
    fn a_process_is_known_by_its_session_however_long_its_names_are() {
        let ours = session_name("orders", "relay-7d9f", 4711);
        assert_eq!(ours, "tidings lease orders relay-7d9f:4711");
        let session = read(1, &ours, true).expect("a session of a relay");
        assert_eq!(
            (session.relay.as_str(), session.process.as_str()),
            ("orders", "relay-7d9f:4711")
        );
        let name = "r".repeat(40);
        let long = session_name(
            &name,
            "a-host-with-a-name-of-its-own.example.com",
            4_194_304,
        );
        assert!(long.len() <= 63 && long.ends_with(":4194304"), "{long}");
        assert_eq!(
            read(1, &long, false).expect("a session of a relay").relay,
            name
        );
        assert_eq!(read(1, "psql", false), None);
    }
}
