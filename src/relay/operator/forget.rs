//! Removes what a relay leaves behind: its row, its slot, its publication.

use sqlx::{AssertSqlSafe, PgConnection, types::Json};

use super::{OperatorError, lease};
use crate::relay::{position::Identity, resume::position_topic_name, slot::slot_name};

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forgotten {
    pub(crate) slot: Option<String>,
    pub(crate) publication: Option<String>,
    /// The topic of its positions, if it delivered exactly once; it stays in Kafka.
    pub(crate) topic: Option<String>,
}

/// Removes the relay `name`, which must not run. Retention does not wait for it any more.
///
/// # Errors
/// A refusal with the reason; a lost connection.
pub(crate) async fn forget(session: &mut PgConnection, schema: &str, name: &str) -> Result<Forgotten, OperatorError> {
    let doing = "forgetting the relay";
    sqlx::raw_sql("begin isolation level read committed").execute(&mut *session).await.map_err(OperatorError::sql(doing))?;
    let forgotten = remove(session, schema, name).await;
    let end = if forgotten.is_ok() { "commit" } else { "rollback" };
    sqlx::raw_sql(end).execute(session).await.map_err(OperatorError::sql(doing))?;
    forgotten
}

async fn remove(session: &mut PgConnection, schema: &str, name: &str) -> Result<Forgotten, OperatorError> {
    lease::take(session, schema, name).await?;
    let sql = format!("delete from \"{schema}\".relay where name = $1 returning identity");
    let row = sqlx::query_as(AssertSqlSafe(sql)).bind(name).fetch_one(&mut *session);
    let (identity,): (Option<Json<Identity>>,) = row.await.map_err(OperatorError::sql("deleting the relay's row"))?;
    let object = slot_name(name);
    // A relay of the same name in another schema has both; they are told apart by the table that the publication is for.
    let ours = "select exists (select from pg_publication_tables where pubname = $1 and schemaname = $2 and tablename = 'outbox')";
    let ours = sqlx::query_scalar(ours).bind(&object).bind(schema).fetch_one(&mut *session);
    let ours: bool = ours.await.map_err(OperatorError::sql("looking for the publication"))?;
    if ours {
        let sql = format!("drop publication \"{object}\"");
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut *session)
            .await
            .map_err(OperatorError::sql("dropping the publication (its owner may)"))?;
    }
    let others = "select exists (select from pg_publication where pubname = $1)";
    let others: bool = sqlx::query_scalar(others)
        .bind(&object)
        .fetch_one(&mut *session)
        .await
        .map_err(OperatorError::sql("looking for the publication"))?;
    // Last: this is not undone by a rollback. A walsender that is left over would keep it.
    let dropped = if others { 0 } else { drop_slot(session, &object).await? };
    Ok(Forgotten {
        slot: (dropped > 0).then(|| object.clone()),
        publication: ours.then_some(object),
        topic: identity.map(|Json(identity)| position_topic_name(name, &identity, schema)),
    })
}

async fn drop_slot(session: &mut PgConnection, slot: &str) -> Result<u64, OperatorError> {
    let ended = "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots
                 where slot_name = $1 and database = current_database() and active_pid is not null";
    sqlx::query(ended).bind(slot).execute(&mut *session).await.map_err(OperatorError::sql("ending the slot's walsender"))?;
    let sql = "select pg_drop_replication_slot(slot_name) from pg_replication_slots
               where slot_name = $1 and database = current_database() and plugin = 'pgoutput'";
    let dropped = sqlx::query(sql).bind(slot).execute(session).await.map_err(OperatorError::sql("dropping the slot"))?;
    Ok(dropped.rows_affected())
}
