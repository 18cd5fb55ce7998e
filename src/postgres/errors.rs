//! Text of database errors.
//!
//! sqlx appends the line of PostgreSQL's C source to each error of the server ("… does not
//! exist at line 1449"). That line is removed wherever an error becomes text: [`cleaned`] for
//! an error that is kept as a source, [`with_causes`] for one that is printed.

use std::error::Error;
use std::fmt;

use sqlx::error::{DatabaseError, ErrorKind};

/// Returns the error with a text that does not contain the server's source line.
pub(crate) fn cleaned(error: sqlx::Error) -> sqlx::Error {
    match error {
        sqlx::Error::Database(error) => sqlx::Error::Database(Box::new(Cleaned(error))),
        other => other,
    }
}

/// Returns an error and its causes in one line. Omits causes that the text already contains, and
/// the server's source lines.
#[cfg(any(feature = "relay", feature = "subscriber", feature = "health"))]
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut next) = (String::new(), Some(error));
    while let Some(error) = next {
        let mut cause = error.to_string();
        let mut inner = Some(error);
        while let Some(error) = inner {
            if let Some(sqlx::Error::Database(error)) = error.downcast_ref() {
                // Removes the source line, also if a wrapping error has quoted the text.
                cause = cause.replace(&error.to_string(), error.message());
            }
            inner = error.source();
        }
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = without_database(error);
    }
    text
}

/// Returns the cause of an error. The server's error is omitted, because sqlx's text contains it.
#[cfg(any(feature = "relay", feature = "subscriber", feature = "health"))]
fn without_database<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
    match error.downcast_ref() {
        Some(sqlx::Error::Database(_)) => None,
        _ => error.source(),
    }
}

/// An error of the server that is displayed as its message alone.
#[derive(Debug)]
struct Cleaned(Box<dyn DatabaseError>);

// === impl Display, Error, DatabaseError ===

impl fmt::Display for Cleaned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.message())
    }
}

impl Error for Cleaned {}

impl DatabaseError for Cleaned {
    fn message(&self) -> &str {
        self.0.message()
    }

    fn code(&self) -> Option<std::borrow::Cow<'_, str>> {
        self.0.code()
    }

    // Returns the server's error, so that callers can downcast it as in sqlx.
    fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
        self.0.as_error()
    }

    fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
        self.0.as_error_mut()
    }

    fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
        self.0.into_error()
    }

    fn is_transient_in_connect_phase(&self) -> bool {
        self.0.is_transient_in_connect_phase()
    }

    fn constraint(&self) -> Option<&str> {
        self.0.constraint()
    }

    fn table(&self) -> Option<&str> {
        self.0.table()
    }

    fn kind(&self) -> ErrorKind {
        self.0.kind()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error of the server, displayed as by sqlx.
    #[derive(Debug)]
    struct Server(&'static str);

    impl fmt::Display for Server {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{} at line 948", self.0)
        }
    }

    impl Error for Server {}

    impl DatabaseError for Server {
        fn message(&self) -> &str {
            self.0
        }
        fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
            self
        }
        fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
            self
        }
        fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
            self
        }
        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    #[cfg(any(feature = "relay", feature = "subscriber", feature = "health"))]
    #[derive(Debug, thiserror::Error)]
    enum Wrapping {
        #[error("doing something")]
        Source(#[source] sqlx::Error),
        #[error("doing something: {0}")]
        Quoting(#[source] sqlx::Error),
    }

    fn server() -> sqlx::Error {
        sqlx::Error::Database(Box::new(Server("relation \"a\" at line 2 does not exist")))
    }

    #[cfg(any(feature = "relay", feature = "subscriber", feature = "health"))]
    #[test]
    fn the_line_of_the_servers_source_is_in_no_text() {
        assert!(
            server().to_string().ends_with("at line 948"),
            "sqlx appends it"
        );
        for error in [
            Wrapping::Source(server()),
            Wrapping::Quoting(server()),
            Wrapping::Source(cleaned(server())),
        ] {
            let text = with_causes(&error);
            assert_eq!(
                text,
                "doing something: error returned from database: relation \"a\" at line 2 does not \
                 exist",
                "{error:?}"
            );
        }
        let cleaned = cleaned(server());
        assert!(cleaned.to_string().ends_with("does not exist"));
        let inner = cleaned
            .as_database_error()
            .expect("the server's")
            .try_downcast_ref::<Server>();
        assert!(inner.is_some(), "callers can still find the server's error");
        assert_eq!(
            with_causes(&sqlx::Error::PoolTimedOut),
            sqlx::Error::PoolTimedOut.to_string()
        );
    }
}
