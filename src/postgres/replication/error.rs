//! Errors of a replication connection.

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorResponseBody;

/// Error of a replication connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ReplicationError {
    #[error("connecting to Postgres at {address}")]
    Connect {
        address: String,
        source: std::io::Error,
    },
    #[error("communicating with Postgres")]
    Io(#[from] std::io::Error),
    #[error("setting up TLS to Postgres at {address}")]
    Handshake {
        address: String,
        source: std::io::Error,
    },
    #[error("setting up TLS to Postgres: {0}")]
    Tls(String),
    #[error("authenticating to Postgres: {0}")]
    Auth(String),
    /// An error response of the server, with its SQLSTATE.
    #[error(
        "Postgres answers {code}: {message}{}",
        .hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default()
    )]
    Server {
        code: String,
        message: String,
        hint: Option<String>,
    },
    /// No response within the timeout. A working server would have responded.
    #[error("Postgres does not answer with {0}; it accepts the connection and may hang")]
    Unanswered(&'static str),
    #[error("Postgres ended the stream")]
    Closed,
    #[error("unexpected answer from Postgres: {0}")]
    Protocol(String),
}

impl ReplicationError {
    /// Returns the SQLSTATE if the server returned an error.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Server { code, .. } => Some(code),
            _ => None,
        }
    }

    pub(super) fn from_response(body: &ErrorResponseBody) -> Self {
        let (mut code, mut message, mut hint) = (String::new(), String::new(), None);
        let mut fields = body.fields();
        while let Ok(Some(field)) = fields.next() {
            let value = printable(field.value_bytes());
            match field.type_() {
                b'C' => code = value,
                b'M' => message = value,
                b'H' => hint = Some(value),
                _ => {}
            }
        }
        Self::Server {
            code,
            message,
            hint,
        }
    }
}

/// Maximum length of a text in an error of the server. Postgres's own texts are shorter.
const TEXT_MAX: usize = 1_000;

/// Converts a text of the server for a log line: limits its length and replaces control characters.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * TEXT_MAX)]);
    text.chars()
        .take(TEXT_MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
