//! Name of the schema that holds the tables of Tidings.

use std::fmt;
use std::str::FromStr;

/// The name of the schema that holds the tables of Tidings: lower-case letters, digits and
/// underscores.
///
/// The rule is stricter than that of Postgres, so that the name has the same meaning quoted,
/// unquoted, in `psql` and in a URL.
///
/// ```
/// use tidings::postgres::SchemaName;
///
/// let schema: SchemaName = "billing_events".parse()?;
/// assert_eq!(schema.as_str(), "billing_events");
/// assert_eq!(SchemaName::default().as_str(), "tidings");
/// assert!("Billing; drop table".parse::<SchemaName>().is_err());
/// # Ok::<(), tidings::postgres::SchemaNameError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SchemaName(String);

/// Reason why a schema name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaNameError {
    /// The name is empty, starts with a digit, or contains a character that requires quoting.
    #[error(
        "the schema name {0:?} is invalid: start with a lower-case letter or an underscore, \
         continue with lower-case letters, digits and underscores"
    )]
    Characters(String),
    /// Postgres would truncate the name.
    #[error(
        "the schema name {0:?} is longer than {max} bytes, the limit of Postgres: \
         choose a shorter one",
        max = SchemaName::BYTES_MAX
    )]
    Length(String),
    /// Postgres reserves names that start with `pg_`.
    #[error("the schema name {0:?} starts with `pg_`, which Postgres reserves: choose another")]
    Reserved(String),
}

impl SchemaName {
    /// The maximum length of a name, in bytes. It is `NAMEDATALEN - 1`, because Postgres silently
    /// truncates longer identifiers.
    pub const BYTES_MAX: usize = 63;

    /// Returns the name as text. It is safe in SQL between double quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === impl SchemaName ===

impl Default for SchemaName {
    fn default() -> Self {
        Self("tidings".into())
    }
}

impl FromStr for SchemaName {
    type Err = SchemaNameError;

    fn from_str(name: &str) -> Result<Self, SchemaNameError> {
        let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        if !starts_well
            || !name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        {
            return Err(SchemaNameError::Characters(name.to_owned()));
        }
        if name.len() > Self::BYTES_MAX {
            return Err(SchemaNameError::Length(name.to_owned()));
        }
        if name.starts_with("pg_") {
            return Err(SchemaNameError::Reserved(name.to_owned()));
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for SchemaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_need_quoting_is_refused() {
        for name in [
            "", "1st", "Tidings", "a-b", "a.b", "a b", "a\"b", "ä", "x;drop",
        ] {
            assert_eq!(
                name.parse::<SchemaName>(),
                Err(SchemaNameError::Characters(name.into())),
                "{name}"
            );
        }
    }

    #[test]
    fn a_name_postgres_would_cut_off_or_keeps_for_itself_is_refused() {
        assert!("a".repeat(63).parse::<SchemaName>().is_ok());
        assert!(matches!(
            "a".repeat(64).parse::<SchemaName>(),
            Err(SchemaNameError::Length(_))
        ));
        assert!(matches!(
            "pg_mine".parse::<SchemaName>(),
            Err(SchemaNameError::Reserved(_))
        ));
    }
}
