//! Parameters of the URL: the supported ones, and the reasons why others of libpq are refused.
//! Pure.

/// Supported parameters, in the order of the message that lists them.
pub(super) const KNOWN: [&str; 28] = [
    "application_name",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "dbname",
    "fallback_application_name",
    "gssencmode",
    "host",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "options",
    "passfile",
    "password",
    "port",
    "require_auth",
    "sslcert",
    "sslcompression",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "sslsni",
    "ssl_min_protocol_version",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// Refused parameters of libpq and other clients, with the reasons.
const REFUSED: [(&str, &str); 20] = [
    ("gssdelegation", "GSSAPI is not supported"),
    ("gsslib", "GSSAPI is not supported"),
    ("hostaddr", "write the address as the host"),
    ("krbsrvname", "GSSAPI is not supported"),
    ("load_balance_hosts", "only one host is supported"),
    ("max_protocol_version", "protocol 3.0 is used"),
    ("min_protocol_version", "protocol 3.0 is used"),
    ("oauth_client_id", "OAuth is not supported"),
    ("oauth_issuer", "OAuth is not supported"),
    ("passcommand", "set PGPASSWORD, or use a password file"),
    (
        "pgbouncer",
        "it is a parameter of Prisma; a relay connects to Postgres itself, without a pooler",
    ),
    ("replication", "tidings sets it where it is needed"),
    ("requirepeer", "use sslmode=verify-full over TCP instead"),
    ("requiressl", "write sslmode=require"),
    (
        "service",
        "write its settings into the URL: pg_service.conf is not read",
    ),
    (
        "sslcertmode",
        "a client certificate is sent if sslcert is given",
    ),
    (
        "sslcrl",
        "revocation lists are not read: replace the authority in sslrootcert",
    ),
    (
        "sslcrldir",
        "revocation lists are not read: replace the authority in sslrootcert",
    ),
    (
        "sslpassword",
        "decrypt the key file: openssl pkey -in KEY -out PLAIN",
    ),
    (
        "ssl_max_protocol_version",
        "the newest version that client and server support is used",
    ),
];

/// Returns the remedy for a parameter that is not supported.
pub(super) fn unknown(name: &str) -> String {
    if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
        return format!("parameter {name} is not supported: {reason}; remove it");
    }
    let nearest = KNOWN
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    match nearest {
        Some(known) if strsim::jaro_winkler(known, name) > 0.88 => {
            format!("unknown parameter {name}; did you mean {known}?")
        }
        _ => format!(
            "unknown parameter {name}; remove it (known: {})",
            KNOWN.join(", ")
        ),
    }
}

/// Checks the value of a parameter that is accepted because Tidings behaves accordingly in any
/// case. Returns the fault, if any.
pub(super) fn fault(name: &str, value: &str) -> Option<String> {
    let expected = match (name, value) {
        ("gssencmode", "disable" | "prefer") => return None,
        ("gssencmode", _) => {
            "GSSAPI encryption is not supported; use disable or prefer, and sslmode=verify-full"
        }
        ("sslcompression", "0") => return None,
        ("sslcompression", _) => "TLS compression is not supported; remove it",
        ("client_encoding", value)
            if ["utf8", "utf-8", "auto"].contains(&value.to_lowercase().as_str()) =>
        {
            return None;
        }
        ("client_encoding", _) => "sessions use UTF8; remove it",
        ("ssl_min_protocol_version", "TLSv1" | "TLSv1.1" | "TLSv1.2") => return None,
        ("ssl_min_protocol_version", _) => {
            "TLS 1.2 and 1.3 are used; set the minimum 1.3 on the server"
        }
        ("target_session_attrs", "any" | "read-write" | "primary") => return None,
        ("target_session_attrs", _) => {
            "tidings writes: use read-write, primary or any, and the host of the primary"
        }
        ("keepalives", "0" | "1") => return None,
        ("keepalives", _) => "use 0 or 1",
        (
            "keepalives_idle" | "keepalives_interval" | "keepalives_count" | "tcp_user_timeout",
            value,
        ) if value.parse::<u32>().is_ok() => {
            return None;
        }
        (
            "keepalives_idle" | "keepalives_interval" | "keepalives_count" | "tcp_user_timeout",
            _,
        ) => "use a whole number",
        _ => return None,
    };
    Some(format!("{name} is {value:?}: {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_known_or_refused_with_its_reason() {
        assert!(
            REFUSED
                .iter()
                .all(|(name, reason)| !KNOWN.contains(name) && !reason.is_empty())
        );
        assert!(KNOWN.is_sorted_by_key(|name| name.replace("ssl_", "sslz")));
        for (name, value, expected) in [
            (
                "gssencmode",
                "require",
                Some("GSSAPI encryption is not supported"),
            ),
            ("gssencmode", "prefer", None),
            ("target_session_attrs", "read-write", None),
            ("target_session_attrs", "standby", Some("tidings writes")),
            ("keepalives_idle", "30", None),
            ("keepalives_idle", "x", Some("whole number")),
            ("sslcompression", "1", Some("not supported")),
            (
                "ssl_min_protocol_version",
                "TLSv1.3",
                Some("1.3 on the server"),
            ),
        ] {
            let found = fault(name, value);
            assert_eq!(found.is_some(), expected.is_some(), "{name}={value}");
            assert!(
                found
                    .unwrap_or_default()
                    .contains(expected.unwrap_or_default()),
                "{name}={value}"
            );
        }
        assert!(unknown("sslcrl").contains("revocation lists are not read"));
        assert!(unknown("requireauth").contains("did you mean require_auth?"));
    }
}
