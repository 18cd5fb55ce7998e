use std::fmt;
use std::io;

/// Why a server could not be had. Each message ends with what to do about it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// Nothing on this machine can give the service.
    Missing {
        /// What is needed, for example `Java 17 or newer`.
        what: String,
        /// The commands or settings that provide it.
        remedy: String,
    },
    /// A download failed.
    Fetch {
        /// What was fetched.
        what: String,
        /// The last lines that `mvn` (or `tar`) printed.
        output: String,
    },
    /// A server ended or kept silent instead of answering.
    Start {
        /// `Postgres`, `Kafka` or `docker compose`.
        service: &'static str,
        /// What happened.
        reason: String,
        /// The last lines of the server's log.
        log: String,
    },
    /// The operating system refused something.
    System {
        /// What was being done.
        doing: String,
        /// What it said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn missing(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Missing {
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// One message for two services that are missing, so that a newcomer needs one round of installing.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, &other) {
            (Self::Missing { what, remedy }, Self::Missing { .. }) => Self::Missing {
                what,
                remedy: format!("{remedy}\n{other}"),
            },
            (first, _) => first,
        }
    }

    /// `map_err(Error::system("create the folder"))`
    pub(crate) fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System {
            doing: doing.into(),
            source,
        }
    }
}

// === impl Display, Error ===

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { what, remedy } => write!(f, "{what} is missing: {remedy}"),
            Self::Fetch { what, output } => write!(
                f,
                "{what} could not be downloaded by mvn; is the network there, and a mirror set in Maven's settings.xml if one is needed?\n{output}"
            ),
            Self::Start {
                service,
                reason,
                log,
            } => write!(
                f,
                "{service} did not start: {reason}; the end of its log:\n{log}"
            ),
            Self::System { doing, source } => write!(f, "cannot {doing}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System { source, .. } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_missing_services_are_told_at_once() {
        let both =
            Error::missing("Postgres", "install it").and(Error::missing("Java", "install that"));
        assert_eq!(
            both.to_string(),
            "Postgres is missing: install it\nJava is missing: install that"
        );
        let refused = Error::System {
            doing: "fork".to_owned(),
            source: io::ErrorKind::OutOfMemory.into(),
        };
        assert!(
            refused
                .and(Error::missing("Java", "install that"))
                .to_string()
                .starts_with("cannot fork")
        );
    }
}
