use std::fmt;
use std::io;

/// Error of starting a server. The message contains a remedy or the end of a log, where available.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// This machine cannot provide the service.
    Missing {
        /// The missing program, for example `Java 17 or newer`.
        what: String,
        /// Commands or settings that provide it.
        remedy: String,
    },
    /// A download failed.
    Fetch {
        /// The downloaded files.
        what: String,
        /// The last lines that `mvn` (or `tar`) printed.
        output: String,
    },
    /// A server exited or did not respond.
    Start {
        /// `Postgres`, `Kafka` or `docker compose`.
        service: &'static str,
        /// Description of the failure.
        reason: String,
        /// The last lines of the server's log.
        log: String,
    },
    /// The operating system reported an error.
    System {
        /// The failed operation.
        doing: String,
        /// The error of the operating system.
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

    /// Combines the messages of two missing services, so that the user can install both at once.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, &other) {
            (Self::Missing { what, remedy }, Self::Missing { .. }) => Self::Missing {
                what,
                remedy: format!("{remedy}\n{other}"),
            },
            (first, _) => first,
        }
    }

    /// Returns a closure for `map_err`, as in `map_err(Error::system("create the folder"))`.
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
                "{what} could not be downloaded by mvn; check the network, and Maven's \
                 settings.xml if a mirror is needed\n{output}"
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
