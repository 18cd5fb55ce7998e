//! Reasons why the tables cannot be migrated, with their remedies.

use sqlx::{PgConnection, migrate::MigrateError as SqlxMigrateError};

use super::TABLE;
use crate::postgres::{SchemaName, SchemaNameError, errors::cleaned};

/// SQLSTATE of a missing permission.
pub(super) const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Reason why the tables cannot be created or upgraded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// The name of the schema is invalid.
    #[error(transparent)]
    Schema(#[from] SchemaNameError),
    /// The role may not create the missing objects.
    #[error(
        "the role {role:?} may not create the tables of Tidings in schema {schema:?}: run \
         `tidings migrate` once as the database's owner, or grant the right: grant create on \
         database {database:?} to {role:?} (or, if the schema exists: grant usage, create on \
         schema {schema:?} to {role:?})"
    )]
    Permission {
        /// The role of the connection.
        role: String,
        /// The database of the connection.
        database: String,
        /// The schema.
        schema: String,
        /// The error of Postgres.
        source: Box<SqlxMigrateError>,
    },
    /// The role may not read the list of applied migrations.
    #[error(
        "the role may not read which migrations are applied to schema {schema:?}: as its owner, \
         run: grant usage on schema {schema:?} to …; grant select on {schema:?}.{TABLE} to …"
    )]
    Unreadable {
        /// The schema.
        schema: String,
        /// The error of Postgres.
        source: sqlx::Error,
    },
    /// The schema already contains a table of the same name that does not belong to Tidings.
    #[error(
        "the schema {schema:?} already holds a table or index of the same name that does not \
         belong to Tidings: choose another schema, e.g. `Migrations::new().schema(\"tidings\")`"
    )]
    Occupied {
        /// The schema.
        schema: String,
        /// The error of Postgres.
        source: Box<SqlxMigrateError>,
    },
    /// An applied migration differs from the one in this version of the library.
    #[error(
        "migration {version} of schema {schema:?} was applied with other contents than in this \
         version of tidings: the database was migrated by a modified build"
    )]
    Changed {
        /// The version of the migration.
        version: i64,
        /// The schema.
        schema: String,
    },
    /// A migration failed for another reason. Nothing was changed.
    #[error("the tables of Tidings cannot be migrated in schema {schema:?}")]
    Failed {
        /// The schema.
        schema: String,
        /// The error of Postgres.
        source: Box<SqlxMigrateError>,
    },
    /// The database is unreachable, or the connection was lost.
    #[error("the database cannot be queried for the tables of Tidings")]
    Database(#[source] sqlx::Error),
}

impl From<sqlx::Error> for MigrateError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(cleaned(error))
    }
}

/// Converts an error of Postgres into one that names the remedy.
pub(super) async fn explain(
    error: SqlxMigrateError,
    schema: &SchemaName,
    conn: &mut PgConnection,
) -> MigrateError {
    let schema = schema.to_string();
    let code = match &error {
        SqlxMigrateError::Execute(source) | SqlxMigrateError::ExecuteMigration(source, _) => source
            .as_database_error()
            .and_then(|e| e.code())
            .map(|code| code.into_owned()),
        _ => None,
    };
    let source = Box::new(match error {
        SqlxMigrateError::Execute(source) => SqlxMigrateError::Execute(cleaned(source)),
        SqlxMigrateError::ExecuteMigration(source, version) => {
            SqlxMigrateError::ExecuteMigration(cleaned(source), version)
        }
        error => error,
    });
    match code.as_deref() {
        Some(INSUFFICIENT_PRIVILEGE) => {
            match sqlx::query_as("select current_user::text, pg_catalog.current_database()::text")
                .fetch_one(conn)
                .await
            {
                Ok((role, database)) => MigrateError::Permission {
                    role,
                    database,
                    schema,
                    source,
                },
                Err(error) => error.into(),
            }
        }
        // duplicate_table, duplicate_object, undefined_column, wrong_object_type: an existing
        // object differs from the one of the migration.
        Some("42P07" | "42710" | "42703" | "42809") => MigrateError::Occupied { schema, source },
        _ => MigrateError::Failed { schema, source },
    }
}
