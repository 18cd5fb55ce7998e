//! Removal of a relay: its row, its slot and its publication.

use sqlx::{AssertSqlSafe, PgConnection, Row as _, types::Json};

use super::{OperatorError, end_transaction, lease};
use crate::relay::{
    position::Identity,
    startup::{
        names::{KnownNames, LogNames, Subject, log_names, position_topic_name},
        server,
    },
};

/// Removed objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forgotten {
    pub(crate) slot: Option<String>,
    pub(crate) publication: Option<String>,
    /// The topic of its positions if it delivered exactly once. The topic stays in Kafka.
    pub(crate) topic: Option<String>,
}

/// Removes the relay `name`, which must not be running. Retention then no longer waits for it.
///
/// # Errors
///
/// Returns a refusal with the reason, or the error of a failed query.
pub(crate) async fn forget(
    session: &mut PgConnection,
    schema: &str,
    name: &str,
) -> Result<Forgotten, OperatorError> {
    let doing = "forgetting the relay";
    sqlx::raw_sql("begin isolation level read committed")
        .execute(&mut *session)
        .await
        .map_err(OperatorError::sql(doing))?;
    let forgotten = remove(session, schema, name).await;
    end_transaction(session, forgotten.is_ok(), doing).await?;
    forgotten
}

async fn remove(
    session: &mut PgConnection,
    schema: &str,
    name: &str,
) -> Result<Forgotten, OperatorError> {
    lease::take(session, schema, name).await?;
    let Deleted {
        identity,
        known,
        table,
    } = delete_row(session, schema, name).await?;
    let table = table
        .as_ref()
        .map_or((schema, "outbox"), |(schema, table)| (schema, table));
    let here = server::identity(session)
        .await
        .map_err(OperatorError::sql("reading the identity of the server"))?;
    let subject = Subject {
        relay: name,
        schema,
        table,
        publication: None,
    };
    let names = log_names(subject, session, &here, &known).await;
    let LogNames { slot, publication } = names.map_err(OperatorError::sql(
        "reading the names of slot and publication",
    ))?;
    let dropped_publication = drop_publication(session, &publication, table).await?;
    // Last, because a rollback does not restore a slot. A remaining walsender would block it.
    let dropped_slot = drop_slot(session, &slot).await?;
    Ok(Forgotten {
        slot: dropped_slot.then_some(slot),
        publication: dropped_publication.then_some(publication),
        topic: identity.map(|identity| position_topic_name(name, &identity, schema)),
    })
}

/// Values of a deleted row.
struct Deleted {
    identity: Option<Identity>,
    known: KnownNames,
    /// The table that the relay read. `None` if it was the schema's outbox.
    table: Option<(String, String)>,
}

async fn delete_row(
    session: &mut PgConnection,
    schema: &str,
    name: &str,
) -> Result<Deleted, OperatorError> {
    let doing = "deleting the relay's row";
    let sql = format!(
        "delete from \"{schema}\".relay where name = $1
         returning identity, slot, publication, position is not null as has_run,
             table_schema, table_name"
    );
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .fetch_one(session)
        .await
        .map_err(OperatorError::sql(doing))?;
    let read = || -> Result<Deleted, sqlx::Error> {
        let table: (Option<String>, Option<String>) =
            (row.try_get("table_schema")?, row.try_get("table_name")?);
        Ok(Deleted {
            identity: row
                .try_get::<Option<Json<Identity>>, _>("identity")?
                .map(|Json(identity)| identity),
            known: KnownNames {
                slot: row.try_get("slot")?,
                publication: row.try_get("publication")?,
                has_run: row.try_get("has_run")?,
            },
            table: table.0.zip(table.1),
        })
    };
    read().map_err(OperatorError::sql(doing))
}

/// Drops the publication if it contains the relay's table. Returns `true` if it was dropped.
async fn drop_publication(
    session: &mut PgConnection,
    name: &str,
    (schema, table): (&str, &str),
) -> Result<bool, OperatorError> {
    let ours = "select exists (
        select from pg_publication_tables
        where pubname = $1 and schemaname = $2 and tablename = $3
    )";
    let ours = sqlx::query_scalar(ours)
        .bind(name)
        .bind(schema)
        .bind(table)
        .fetch_one(&mut *session);
    if !ours
        .await
        .map_err(OperatorError::sql("reading the publication"))?
    {
        return Ok(false);
    }
    let sql = format!("drop publication \"{}\"", name.replace('"', "\"\""));
    let dropped = sqlx::raw_sql(AssertSqlSafe(sql)).execute(session).await;
    dropped.map(|_| true).map_err(OperatorError::sql(
        "dropping the publication (only its owner can)",
    ))
}

/// Drops the slot if it belongs to this database. Returns `true` if it was dropped.
async fn drop_slot(session: &mut PgConnection, slot: &str) -> Result<bool, OperatorError> {
    let ended = "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots
                 where slot_name = $1 and database = current_database() and active_pid is not null";
    sqlx::query(ended)
        .bind(slot)
        .execute(&mut *session)
        .await
        .map_err(OperatorError::sql("terminating the slot's walsender"))?;
    let sql = "select pg_drop_replication_slot(slot_name) from pg_replication_slots
               where slot_name = $1 and database = current_database() and plugin = 'pgoutput'";
    let dropped = sqlx::query(sql)
        .bind(slot)
        .execute(session)
        .await
        .map_err(OperatorError::sql("dropping the slot"))?;
    Ok(dropped.rows_affected() > 0)
}
