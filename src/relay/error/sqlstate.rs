//! Remedies for SQLSTATEs (PostgreSQL manual, appendix A), by the operation that got them.

const POOLER: &str = "connect to Postgres itself: a pooler in between shares sessions or does not support the replication protocol (see docs/managed-postgres.md)";

/// The remedy for an error of a session that does not pass by itself; `None` if it may.
///
/// `object_not_in_prerequisite_state` (55000) is not here: the start checks `wal_level`, and what else has this code (a server in
/// recovery, a slot that lost its log) passes or is repaired by the relay.
pub(crate) fn remedy(code: &str, message: &str) -> Option<&'static str> {
    Some(match code {
        "26000" | "42P05" => POOLER,
        // Poolers report their own time-outs and limits under this code, and those pass.
        "08P01" if is_about_the_protocol(message) => POOLER,
        "42501" => {
            "grant the role what it needs: ALTER ROLE … REPLICATION, SELECT on the outbox, SELECT/INSERT/UPDATE on the relay's tables, and let the table's owner create the publication (see `tidings check`)"
        }
        "42P01" | "3F000" | "42703" => "run `tidings migrate` for this database and schema",
        "53400" => {
            "raise max_replication_slots and max_wal_senders in postgresql.conf and restart the server, or drop a slot that nobody uses (select * from pg_replication_slots)"
        }
        // Of databases whose encoding is neither UTF-8 nor SQL_ASCII.
        "22021" | "22P05" => {
            "a text in the outbox has no form in UTF-8: find it with convert_to(column, 'UTF8') and replace it, or give its event up (`tidings relay skip --event ID`)"
        }
        _ => return None,
    })
}

/// The remedy for a refused connection that waiting cannot help; `None` if it may.
pub(crate) fn remedy_of_connecting(code: &str, message: &str) -> Option<&'static str> {
    Some(match code {
        "28P01" | "28000" => {
            "check user and password of the database URL and the server's pg_hba.conf (a relay also needs a line for `replication`-capable connections to its database)"
        }
        "08P01" if is_about_the_protocol(message) => POOLER,
        // The gateway's own, for a server that is not what the URL demands.
        "08004" => {
            "the database URL's sslmode, channel_binding and require_auth name what is demanded (docs/configuration.md)"
        }
        "3D000" => "check the database's name in the database URL",
        "42501" => {
            "grant the role CONNECT on the database, and for the stream the attribute REPLICATION (ALTER ROLE … REPLICATION); see `tidings check`"
        }
        _ => return None,
    })
}

/// What may help if an error does not pass by itself soon.
pub(crate) fn hint(code: &str, connecting: bool) -> Option<&'static str> {
    Some(match code {
        "53300" => {
            "no connection is left: see max_connections, and the limits of the role and the database (ALTER ROLE … CONNECTION LIMIT); docs/operating.md lists the connections of a relay"
        }
        "55000" if connecting => {
            "the database takes no connections at present: ALTER DATABASE … ALLOW_CONNECTIONS true"
        }
        "25006" => {
            "the database is read-only at present: see default_transaction_read_only of the database and the role, and whether the server is a standby"
        }
        "57P03" => "the server starts, stops or recovers",
        "08P01" => {
            "a pooler in between may have no server connection left: docs/operating.md lists the connections of a relay"
        }
        _ => return None,
    })
}

/// Whether a pooler or server does not support what was sent, as opposed to having no room for it.
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
