//! Remedies for SQLSTATEs (PostgreSQL manual, appendix A), by the operation that failed.

const POOLER: &str = "connect to Postgres itself: a pooler in between shares sessions or does not \
                      support the replication protocol (see docs/managed-postgres.md)";

/// Returns the remedy for an error of a session that does not pass by itself. Returns `None` if it
/// may pass.
///
/// `object_not_in_prerequisite_state` (55000) is omitted. The start checks `wal_level`, and the
/// other causes of this code (a server in recovery, a slot that lost its log) pass or are repaired
/// by the relay.
pub(crate) fn remedy(code: &str, message: &str) -> Option<&'static str> {
    Some(match code {
        "26000" | "42P05" => POOLER,
        // Poolers use this code also for their own timeouts and limits, and those pass.
        "08P01" if is_about_the_protocol(message) => POOLER,
        "42501" => {
            "grant the role what it needs: ALTER ROLE … REPLICATION, SELECT on the outbox, \
             SELECT/INSERT/UPDATE on the relay's tables, and let the table's owner create the \
             publication (see `tidings check`)"
        }
        "42P01" | "3F000" | "42703" => "run `tidings migrate` for this database and schema",
        "53400" => {
            "raise max_replication_slots and max_wal_senders in postgresql.conf and restart the \
             server, or drop an unused slot (select * from pg_replication_slots)"
        }
        // Only in databases whose encoding is neither UTF-8 nor SQL_ASCII.
        "22021" | "22P05" => {
            "a text in the outbox has no form in UTF-8: find it with convert_to(column, 'UTF8') \
             and replace it, or skip its event (`tidings relay skip --event ID`)"
        }
        _ => return None,
    })
}

/// Returns the remedy for a refused connection that does not pass by itself. Returns `None` if it
/// may pass.
pub(crate) fn remedy_of_connecting(code: &str, message: &str) -> Option<&'static str> {
    Some(match code {
        "28P01" | "28000" => {
            "check user and password of the database URL and the server's pg_hba.conf (a relay \
             also needs a line for `replication`-capable connections to its database)"
        }
        "08P01" if is_about_the_protocol(message) => POOLER,
        // The gateway's own code for a server that does not meet the requirements of the URL.
        "08004" => {
            "the database URL's sslmode, channel_binding and require_auth set requirements that \
             the server does not meet (docs/configuration.md)"
        }
        "3D000" => "check the database's name in the database URL",
        "42501" => {
            "grant the role CONNECT on the database, and for the stream the attribute REPLICATION \
             (ALTER ROLE … REPLICATION); see `tidings check`"
        }
        _ => return None,
    })
}

/// Returns a hint for an error that may pass by itself but can persist.
pub(crate) fn hint(code: &str, connecting: bool) -> Option<&'static str> {
    Some(match code {
        "53300" => {
            "no connection is left: see max_connections, and the limits of the role and the \
             database (ALTER ROLE … CONNECTION LIMIT); docs/operating.md lists the connections of \
             a relay"
        }
        "55000" if connecting => {
            "the database takes no connections at present: ALTER DATABASE … ALLOW_CONNECTIONS true"
        }
        "25006" => {
            "the database is read-only at present: see default_transaction_read_only of the \
             database and the role, and whether the server is a standby"
        }
        "57P03" => "the server starts, stops or recovers",
        "08P01" => {
            "a pooler in between may have no server connection left: docs/operating.md lists the \
             connections of a relay"
        }
        _ => return None,
    })
}

/// Returns `true` if a pooler or a server does not support the request, rather than lacks capacity
/// for it.
fn is_about_the_protocol(message: &str) -> bool {
    [
        "startup parameter",
        "prepared statement",
        "bind message",
        "unsupported",
    ]
    .iter()
    .any(|part| message.contains(part))
}
