//! Statements that each connection prepares once.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use sqlx::{AssertSqlSafe, Executor as _, PgConnection};

use super::sqlstate::{STATEMENT_EXISTS, code};

/// A statement that is prepared once per connection.
#[derive(Debug)]
pub(crate) struct Statement {
    name: String,
    /// The types of its parameters.
    parameters: &'static str,
    text: String,
}

impl Statement {
    /// Creates a statement with parameters of these types. Its name is derived from its text,
    /// because several subscribers may share a pool, and a pooler may use one connection for
    /// several versions of the code.
    pub(crate) fn new(parameters: &'static str, text: String) -> Self {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Self {
            name: format!("tidings_{:016x}", hasher.finish()),
            parameters,
            text,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// Place where statements were prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prepared {
    Here,
    /// The pooler used two different connections for the query and for `prepare`.
    Elsewhere,
}

/// Prepares statements that the connection does not have yet.
pub(super) async fn prepare(
    statements: &[Statement],
    connection: &mut PgConnection,
) -> Result<Prepared, sqlx::Error> {
    let names = statements
        .iter()
        .map(|statement| format!("'{}'", statement.name))
        .collect::<Vec<_>>()
        .join(", ");
    let known = format!("select from pg_catalog.pg_prepared_statements where name in ({names})");
    if connection.fetch_all(AssertSqlSafe(known)).await?.len() == statements.len() {
        return Ok(Prepared::Here);
    }
    let prepare = |statement: &Statement| {
        format!(
            "prepare {} ({}) as {};",
            statement.name, statement.parameters, statement.text
        )
    };
    let prepare = statements.iter().map(prepare).collect::<String>();
    match connection.execute(AssertSqlSafe(prepare)).await {
        Ok(_) => Ok(Prepared::Here),
        Err(error) if code(&error).as_deref() == Some(STATEMENT_EXISTS) => Ok(Prepared::Elsewhere),
        Err(error) => Err(error),
    }
}
