//! Creation and upgrades of the tables of Tidings.
//!
//! One transaction takes an advisory lock, creates the schema, sets `search_path` to that schema
//! alone and applies the migrations. A failed run therefore leaves no changes, concurrent runs wait
//! for each other, and the connection returns to its pool with its original settings. The applied
//! versions are stored in a table of the schema. The application's own `_sqlx_migrations` is not
//! used.

use sqlx::migrate::{Migrate, MigrateError as SqlxMigrateError, Migration, MigrationType};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, SqlStr};

use super::{SchemaName, SchemaNameError, errors::cleaned};

/// Table of the applied versions, inside the schema. The name avoids conflicts even in `public`.
const TABLE: &str = "_tidings_migrations";

/// Key of the advisory lock that serializes runs in one database: "tidings" in ASCII.
const LOCK: i64 = 0x0074_6964_696e_6773;

/// SQLSTATE of a missing permission.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Creates or upgrades the tables of Tidings in the schema `tidings`.
///
/// Call it at startup. It does nothing if no migration is pending, and then needs no permission to
/// create objects. Concurrent calls of several processes wait for each other.
///
/// # Errors
///
/// Returns [`MigrateError`], e.g. if the role may not create the schema. The message names the
/// remedy.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = sqlx::PgPool::connect("postgres://localhost/shop").await?;
/// tidings::migrate(&pool).await?;
/// # Ok(()) }
/// ```
pub async fn migrate(pool: &PgPool) -> Result<(), MigrateError> {
    Migrations::new().run(pool).await.map(|_| ())
}

/// The migrations of Tidings, for any schema.
///
/// # Examples
///
/// ```no_run
/// # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// use tidings::Migrations;
///
/// let migrations = Migrations::new().schema("billing_events");
/// for step in migrations.pending(&pool).await? {
///     println!("to do: {step}");
/// }
/// migrations.run(&pool).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "call `run` or `pending`"]
pub struct Migrations {
    schema: Result<SchemaName, SchemaNameError>,
}

/// A migration: its version and description.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MigrationStep {
    /// The version, ascending from 1.
    pub version: i64,
    /// A short description of the migration's subject.
    pub description: &'static str,
}

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

impl Migrations {
    /// Returns the migrations for the schema `tidings`.
    pub fn new() -> Self {
        Self {
            schema: Ok(SchemaName::default()),
        }
    }

    /// Uses another schema, which is created if it is missing.
    ///
    /// An invalid name is reported by [`run`](Self::run) and [`pending`](Self::pending).
    pub fn schema(self, name: impl AsRef<str>) -> Self {
        Self {
            schema: name.as_ref().parse(),
        }
    }

    /// Applies the pending migrations and returns them. The list is empty if the schema was up to
    /// date.
    ///
    /// Unknown versions are ignored, so that an older service can start next to a newer one.
    ///
    /// # Errors
    ///
    /// Returns [`MigrateError`]. The database is then unchanged.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing, because its transaction is rolled back.
    pub async fn run(&self, pool: &PgPool) -> Result<Vec<MigrationStep>, MigrateError> {
        let schema = self.schema.clone()?;
        let mut tx = pool.begin().await?;
        sqlx::query("select pg_catalog.pg_advisory_xact_lock($1)")
            .bind(LOCK)
            .execute(&mut *tx)
            .await?;
        let pending = pending_steps(&mut tx, &schema).await?;
        if !pending.is_empty()
            && let Err(error) = apply(&mut tx, &schema, &pending).await
        {
            tx.rollback().await?;
            return Err(explain(error, &schema, &mut *pool.acquire().await?).await);
        }
        tx.commit().await?;
        Ok(pending)
    }

    /// Returns the migrations that [`run`](Self::run) would apply, without changing anything.
    ///
    /// # Errors
    ///
    /// Returns [`MigrateError`] if the schema name is invalid, a migration was modified, or the
    /// database cannot be queried.
    pub async fn pending(&self, pool: &PgPool) -> Result<Vec<MigrationStep>, MigrateError> {
        let schema = self.schema.clone()?;
        pending_steps(&mut *pool.acquire().await?, &schema).await
    }
}

// === impl Migrations ===

impl Default for Migrations {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Display for MigrationStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.version, self.description)
    }
}

/// Returns all migrations in order. They are compiled in, because a published crate has no
/// `migrations/` at run time.
fn steps() -> Vec<(MigrationStep, Migration)> {
    const ALL: &[(i64, &str, &str)] = &[
        (
            1,
            "outbox",
            include_str!("../../migrations/0001_outbox.sql"),
        ),
        (2, "relay", include_str!("../../migrations/0002_relay.sql")),
        (3, "inbox", include_str!("../../migrations/0003_inbox.sql")),
        (
            10,
            "parked",
            include_str!("../../migrations/0010_parked.sql"),
        ),
        (
            11,
            "operation",
            include_str!("../../migrations/0011_operation.sql"),
        ),
        (
            12,
            "relay table",
            include_str!("../../migrations/0012_relay_table.sql"),
        ),
        (20, "sagas", include_str!("../../migrations/0020_sagas.sql")),
        (
            21,
            "scheduled",
            include_str!("../../migrations/0021_scheduled.sql"),
        ),
        (
            22,
            "open sagas",
            include_str!("../../migrations/0022_open_sagas.sql"),
        ),
        (
            23,
            "inbox collation",
            include_str!("../../migrations/0023_inbox_collation.sql"),
        ),
        (
            24,
            "reserved",
            include_str!("../../migrations/0024_reserved.sql"),
        ),
        (
            25,
            "relay secret",
            include_str!("../../migrations/0025_relay_secret.sql"),
        ),
        (
            26,
            "outbox guards",
            include_str!("../../migrations/0026_outbox_guards.sql"),
        ),
        (
            28,
            "relay names",
            include_str!("../../migrations/0028_relay_names.sql"),
        ),
        (
            32,
            "parked ranges",
            include_str!("../../migrations/0032_parked_ranges.sql"),
        ),
        (
            35,
            "detour attempts",
            include_str!("../../migrations/0035_detour_attempts.sql"),
        ),
        (
            36,
            "inbox topic",
            include_str!("../../migrations/0036_inbox_topic.sql"),
        ),
        (
            37,
            "subscriber",
            include_str!("../../migrations/0037_subscriber.sql"),
        ),
        (
            38,
            "relay event source",
            include_str!("../../migrations/0038_relay_event_source.sql"),
        ),
        (
            39,
            "saga code",
            include_str!("../../migrations/0039_saga_code.sql"),
        ),
        (
            40,
            "detour correlation",
            include_str!("../../migrations/0040_detour_correlation.sql"),
        ),
        (
            41,
            "subscriber parked",
            include_str!("../../migrations/0041_subscriber_parked.sql"),
        ),
        (
            42,
            "subscriber parked keys",
            include_str!("../../migrations/0042_subscriber_parked_keys.sql"),
        ),
    ];
    ALL.iter()
        .map(|&(version, description, sql)| {
            let migration = Migration::new(
                version,
                description.into(),
                MigrationType::Simple,
                SqlStr::from_static(sql),
                false,
            );
            (
                MigrationStep {
                    version,
                    description,
                },
                migration,
            )
        })
        .collect()
}

async fn pending_steps(
    conn: &mut PgConnection,
    schema: &SchemaName,
) -> Result<Vec<MigrationStep>, MigrateError> {
    let exists: bool = sqlx::query_scalar(
        "select exists (select from pg_catalog.pg_tables where schemaname = $1 and tablename = $2)",
    )
    .bind(schema.as_str())
    .bind(TABLE)
    .fetch_one(&mut *conn)
    .await?;
    if !exists {
        return Ok(steps().into_iter().map(|(step, _)| step).collect());
    }
    let applied: Vec<(i64, Vec<u8>)> = sqlx::query_as(AssertSqlSafe(format!(
        r#"select version, checksum from "{schema}"."{TABLE}""#
    )))
    .fetch_all(conn)
    .await
    .map_err(cleaned)
    .map_err(|source| {
        match source
            .as_database_error()
            .and_then(|error| error.code())
            .as_deref()
        {
            Some(INSUFFICIENT_PRIVILEGE) => MigrateError::Unreadable {
                schema: schema.to_string(),
                source,
            },
            _ => MigrateError::Database(source),
        }
    })?;
    let mut pending = Vec::new();
    for (step, migration) in steps() {
        match applied.iter().find(|(version, _)| *version == step.version) {
            None => pending.push(step),
            Some((_, checksum)) if *checksum == *migration.checksum => {}
            Some(_) => {
                return Err(MigrateError::Changed {
                    version: step.version,
                    schema: schema.to_string(),
                });
            }
        }
    }
    Ok(pending)
}

async fn apply(
    tx: &mut PgConnection,
    schema: &SchemaName,
    pending: &[MigrationStep],
) -> Result<(), SqlxMigrateError> {
    // `create schema if not exists` requires the permission to create even if the schema exists.
    let missing: bool = sqlx::query_scalar("select pg_catalog.to_regnamespace($1) is null")
        .bind(schema.as_str())
        .fetch_one(&mut *tx)
        .await?;
    if missing {
        sqlx::query(AssertSqlSafe(format!(r#"create schema "{schema}""#)))
            .execute(&mut *tx)
            .await?;
    }
    sqlx::query(
        "select pg_catalog.set_config('search_path'::text, pg_catalog.quote_ident($1), true)",
    )
    .bind(schema.as_str())
    .execute(&mut *tx)
    .await?;
    tx.ensure_migrations_table(TABLE).await?;
    for (_, migration) in steps()
        .into_iter()
        .filter(|(step, _)| pending.contains(step))
    {
        tx.apply(TABLE, &migration).await?;
    }
    Ok(())
}

/// Converts an error of Postgres into one that names the remedy.
async fn explain(
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
