//! Registration of a saga's code in its database: all SQL for the table `saga_code`.

use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};

use super::signature::{Registered, Signature, names};
use crate::postgres::{SchemaName, begin};
use crate::subscriber::NotAdmitted;

/// Age limit of the last heartbeat, in seconds: four heartbeats. Older code does not count as
/// running.
pub(crate) const LIVE_SECONDS: f64 = 60.0;

/// Seed of the advisory lock of a name: "sagacode" in ASCII.
const LOCK_SEED: i64 = 0x7361_6761_636f_6465;

/// Number of definitions kept per subscriber: those of the last deployments, whose replies may
/// still arrive.
const KEEP: i64 = 50;

/// Code of a saga in this process.
#[derive(Clone, Debug)]
pub(super) struct Registration {
    schema: SchemaName,
    name: String,
    consumer: String,
    definition: String,
    signature: Signature,
}

impl Registration {
    pub(super) fn new(
        schema: &SchemaName,
        name: &str,
        consumer: &str,
        signature: Signature,
    ) -> Self {
        let definition = signature.hash();
        Self {
            schema: schema.clone(),
            name: name.to_owned(),
            consumer: consumer.to_owned(),
            definition,
            signature,
        }
    }

    /// Registers the code, unless another subscriber uses the name with another definition.
    ///
    /// # Errors
    ///
    /// Returns [`NotAdmitted`] with the refusal, its cause and its remedies, or with the server's
    /// error.
    pub(super) async fn register(&self, pool: &PgPool) -> Result<(), NotAdmitted> {
        let mut transaction = begin(pool).await?;
        // If two processes start at once, the second waits and then sees the registration of the
        // first.
        sqlx::query(AssertSqlSafe(format!(
            "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended($1, \
             {LOCK_SEED}::bigint))"
        )))
        .persistent(false)
        .bind(format!("{}/{}", self.schema, self.name))
        .execute(&mut *transaction)
        .await?;
        let registered = registered(&mut transaction, &self.schema, &self.name).await?;
        if let Err(other) = self.signature.admit(&self.consumer, &registered) {
            return Err(NotAdmitted::Refused(self.refusal(other)));
        }
        self.warn_of(&registered);
        self.beat(&mut transaction).await?;
        let tidy = format!(
            r#"delete from "{0}".saga_code where name = $1 and consumer = $2 and definition not in (
                 select definition from "{0}".saga_code where name = $1 and consumer = $2
                 order by seen_at desc limit {KEEP})"#,
            self.schema
        );
        sqlx::query(AssertSqlSafe(tidy))
            .persistent(false)
            .bind(&self.name)
            .bind(&self.consumer)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Records a heartbeat of this code.
    ///
    /// # Errors
    ///
    /// Returns the server's error.
    pub(super) async fn beat(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        let sql = format!(
            r#"insert into "{}".saga_code (name, consumer, definition, version, steps)
               values ($1, $2, $3, $4, $5)
               on conflict (name, consumer, definition) do update set seen_at = pg_catalog.now()"#,
            self.schema
        );
        let query = sqlx::query(AssertSqlSafe(sql))
            .persistent(false)
            .bind(&self.name)
            .bind(&self.consumer)
            .bind(&self.definition);
        query
            .bind(self.signature.version.cast_signed())
            .bind(Json(&self.signature.steps))
            .execute(conn)
            .await
            .map(drop)
    }

    fn refusal(&self, other: &Registered) -> String {
        let Self { name, consumer, .. } = self;
        let (owner, version, seen) = (&other.consumer, other.version, other.seen_seconds.max(0.0));
        format!(
            "saga `{name}`: another definition has this name in this database. The subscriber \
             `{owner}` runs it (version {version}, steps {}; last heartbeat {seen:.0} s ago), and \
             `{consumer}` has version {} with the steps {}. Each would continue the sagas of the \
             other and skip their steps. Rename one of the sagas, or keep them in different \
             schemas (`Inbox::schema`). If the subscriber was renamed, run the unchanged \
             definition under its new name once, and change it afterwards. If `{owner}` no longer \
             exists, run `tidings sagas disown {name} --subscriber {owner}`",
            other.step_names(),
            self.signature.version,
            names(&self.signature.steps),
        )
    }

    /// Logs running code whose definition conflicts with this one.
    fn warn_of(&self, registered: &[Registered]) {
        for other in registered.iter().filter(|other| {
            other.seen_seconds < LIVE_SECONDS && other.definition != self.definition
        }) {
            if other.consumer != self.consumer {
                tracing::warn!(
                    saga = self.name,
                    subscriber = self.consumer,
                    other = other.consumer,
                    steps = other.step_names(),
                    "another subscriber runs another definition of this saga; deploy the same \
                     definition to both"
                );
            } else if other.version == self.signature.version.cast_signed() {
                tracing::warn!(
                    saga = self.name,
                    subscriber = self.consumer,
                    version = other.version,
                    steps = other.step_names(),
                    "another definition with the same version ran within the last minute; raise \
                     `Saga::version` with each change"
                );
            }
        }
    }
}

/// Returns the definitions registered under a name.
///
/// # Errors
///
/// Returns the server's error.
pub(super) async fn registered(
    conn: &mut PgConnection,
    schema: &SchemaName,
    name: &str,
) -> Result<Vec<Registered>, sqlx::Error> {
    let sql = format!(
        r#"select consumer, definition, version, steps,
             extract(epoch from pg_catalog.clock_timestamp() - seen_at)::float8 as seen_seconds
           from "{schema}".saga_code where name = $1 order by seen_at desc"#
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .bind(name)
        .fetch_all(conn)
        .await?;
    let of = |row: &PgRow| {
        Ok(Registered {
            consumer: row.try_get("consumer")?,
            definition: row.try_get("definition")?,
            version: row.try_get("version")?,
            steps: row.try_get::<Json<_>, _>("steps")?.0,
            seen_seconds: row.try_get("seen_seconds")?,
        })
    };
    rows.iter().map(of).collect()
}
