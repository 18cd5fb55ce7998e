//! Creation and upgrades of the tables of Tidings.
//!
//! One transaction takes an advisory lock, creates the schema, sets `search_path` to that schema
//! alone and applies the migrations. A failed run therefore leaves no changes, concurrent runs wait
//! for each other, and the connection returns to its pool with its original settings. The applied
//! versions are stored in a table of the schema. The application's own `_sqlx_migrations` is not
//! used.
//!
//! | file | content |
//! |---|---|
//! | `steps` | the migrations, compiled in |
//! | `error` | reasons why they cannot be applied |

mod error;
mod steps;

use sqlx::migrate::{Migrate, MigrateError as SqlxMigrateError};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

pub use self::error::MigrateError;
use self::error::{INSUFFICIENT_PRIVILEGE, explain};
pub use self::steps::MigrationStep;
use self::steps::steps;
use super::{SchemaName, SchemaNameError, begin, errors::cleaned};

/// Table of the applied versions, inside the schema. The name avoids conflicts even in `public`.
const TABLE: &str = "_tidings_migrations";

/// Key of the advisory lock that serializes runs in one database: "tidings" in ASCII.
const LOCK: i64 = 0x0074_6964_696e_6773;

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
        let mut tx = begin(pool).await?;
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
