//! `adopt`: a database continues the outbox of another one, after pg_upgrade or a restore on
//! another server.
//!
//! ```text
//! transaction ids are still valid ──▶ the position is kept; at its next start, the relay reads the
//! (pg_upgrade)                        newest one from the topic of the other database
//! transaction ids are not valid   ──▶ rows get new ids: published rows one that every snapshot
//! (a restored dump)                   sees, the others that of the command's transaction
//! ```

use sqlx::{AssertSqlSafe, PgConnection, types::Json};

use super::{
    OperatorError,
    moves::{Moved, Now, Stood, count, store},
};
use crate::relay::position::{Change, Identity, Position};

/// The first transaction id that is not reserved. Every snapshot sees it.
const SEEN_BY_ALL: &str = "3";

/// Input of an adoption.
pub(super) struct Adoption<'a> {
    pub(super) schema: &'a str,
    pub(super) name: &'a str,
    pub(super) stood: &'a Stood,
    pub(super) now: &'a Now,
    /// The newest position is in Kafka, in the topic of the other database.
    pub(super) from_kafka: bool,
    pub(super) dry_run: bool,
}

/// Makes the relay continue after its position in another database.
///
/// # Errors
///
/// Returns a refusal with the reason, or the error of a failed query.
pub(super) async fn adopt(
    session: &mut PgConnection,
    adoption: &Adoption<'_>,
) -> Result<Moved, OperatorError> {
    let Adoption {
        schema,
        now,
        dry_run,
        ..
    } = adoption;
    let (identity, position) = position_elsewhere(adoption)?;
    refuse_copy(session, adoption, identity).await?;
    if position.end() <= now.snapshot.xmax() && !has_rows_of_the_future(session, schema).await? {
        let after = position.clone().adopted();
        let moved = count(session, schema, position, &after).await?;
        if !dry_run {
            store_adoption(session, adoption, identity, &after).await?;
        }
        return Ok(moved);
    }
    refuse_others(session, adoption).await?;
    if !dry_run {
        renumber(session, adoption, position).await?;
    }
    Ok(Moved {
        repeats: 0,
        skips: 0,
        is_lower_bound: false,
        elsewhere: false,
        some_are_gone: false,
    })
}

fn position_elsewhere<'a>(
    adoption: &Adoption<'a>,
) -> Result<(&'a Identity, &'a Position), OperatorError> {
    let (name, stood) = (adoption.name, adoption.stood);
    let refused = |why: &str| {
        Err(OperatorError::Refused(format!(
            "relay `{name}` has nothing to adopt: {why}"
        )))
    };
    let (Some(identity), Some(position)) = (&stood.identity, &stood.position) else {
        return refused("it has no position; start the relay");
    };
    if identity.change(&adoption.now.identity) != Change::Database {
        return refused("its position belongs to this database; start the relay");
    }
    Ok((identity, position))
}

/// Refuses a copy on the server of its original, because both would publish the same events.
async fn refuse_copy(
    session: &mut PgConnection,
    adoption: &Adoption<'_>,
    identity: &Identity,
) -> Result<(), OperatorError> {
    if identity.system != adoption.now.identity.system {
        return Ok(());
    }
    let original =
        sqlx::query_scalar("select datname::text from pg_database where oid::bigint = $1")
            .bind(identity.database);
    let original: Option<String> = original
        .fetch_optional(session)
        .await
        .map_err(OperatorError::sql("reading the database of the position"))?;
    let name = adoption.name;
    original.map_or(Ok(()), |original| {
        Err(OperatorError::Refused(format!(
            "database `{original}` still exists on this server, and this database is a copy of \
             it: both would publish the same unpublished events. To publish only events that are \
             inserted from now on, run `tidings relay skip --all --name {name}`. To replace \
             `{original}`, stop its relay, drop the database and run adopt again"
        )))
    })
}

async fn has_rows_of_the_future(
    session: &mut PgConnection,
    schema: &str,
) -> Result<bool, OperatorError> {
    let sql = format!(
        "select exists (select from \"{schema}\".outbox
         where xid >= pg_snapshot_xmax(pg_current_snapshot()))"
    );
    sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_one(session)
        .await
        .map_err(OperatorError::sql("reading the outbox"))
}

/// Refuses if there are other relays: new transaction ids can record the published events of one
/// relay only.
async fn refuse_others(
    session: &mut PgConnection,
    adoption: &Adoption<'_>,
) -> Result<(), OperatorError> {
    let Adoption { schema, name, .. } = adoption;
    let sql = format!(
        "select coalesce(array_agg(name order by name), '{{}}') from \"{schema}\".relay
         where name <> $1"
    );
    let others: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(name)
        .fetch_one(session)
        .await
        .map_err(OperatorError::sql("reading the relays"))?;
    if others.is_empty() {
        return Ok(());
    }
    Err(OperatorError::Refused(format!(
        "the transaction ids of this server are behind those of the outbox's rows, and one column \
         cannot record what each of several relays ({name}, {}) has published. If every relay had \
         published everything before the dump, run update \"{schema}\".outbox set xid = \
         pg_current_xact_id(), then `tidings relay skip --all` for each relay: no event is \
         repeated or skipped. Otherwise run `tidings relay rewind --all` for each relay, which \
         publishes everything again",
        others.join(", ")
    )))
}

async fn store_adoption(
    session: &mut PgConnection,
    adoption: &Adoption<'_>,
    identity: &Identity,
    after: &Position,
) -> Result<(), OperatorError> {
    let Adoption {
        schema,
        name,
        from_kafka,
        ..
    } = adoption;
    if !from_kafka {
        return store(session, schema, name, after).await;
    }
    let sql = format!(
        "update \"{schema}\".relay
         set adopts = $2, moved_to = null, epoch = epoch + 1, updated_at = now() where name = $1"
    );
    let stored = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(Json(identity))
        .execute(session)
        .await;
    stored
        .map(|_| ())
        .map_err(OperatorError::sql("storing the adoption"))
}

/// Gives every row a transaction id of this server.
async fn renumber(
    session: &mut PgConnection,
    adoption: &Adoption<'_>,
    position: &Position,
) -> Result<(), OperatorError> {
    let doing = "giving the outbox's rows transaction ids of this server";
    let Adoption { schema, name, .. } = adoption;
    // The lock waits for open transactions that have written to the outbox.
    let lock = format!("lock table \"{schema}\".outbox in share row exclusive mode");
    sqlx::raw_sql(AssertSqlSafe(lock))
        .execute(&mut *session)
        .await
        .map_err(OperatorError::sql(doing))?;
    let own: String = sqlx::query_scalar("select pg_current_xact_id()::text")
        .fetch_one(&mut *session)
        .await
        .map_err(OperatorError::sql(doing))?;
    let first = own.parse().map_err(|_| {
        OperatorError::Refused(format!(
            "the server returned an invalid transaction id: {own}"
        ))
    })?;
    let rows = format!(
        "update \"{schema}\".outbox
         set xid = case
             when \"{schema}\".is_published($1, xid, seq) then '{SEEN_BY_ALL}'::xid8
             else pg_current_xact_id()
         end"
    );
    sqlx::query(AssertSqlSafe(rows))
        .bind(Json(position))
        .execute(&mut *session)
        .await
        .map_err(OperatorError::sql(doing))?;
    let floor = format!("update \"{schema}\".retention set floor = $1::text::xid8");
    sqlx::query(AssertSqlSafe(floor))
        .bind(&own)
        .execute(&mut *session)
        .await
        .map_err(OperatorError::sql(doing))?;
    store(session, schema, name, &position.clone().renumbered(first)).await
}

/// Gives a new id to rows whose transactions this server has not reached yet: one that every
/// snapshot sees if they are skipped, the id of this transaction if they will be published.
///
/// # Errors
///
/// Returns the error of a failed query.
pub(super) async fn renumber_foreign(
    session: &mut PgConnection,
    schema: &str,
    left_out: bool,
) -> Result<(), OperatorError> {
    let id = if left_out {
        format!("'{SEEN_BY_ALL}'::xid8")
    } else {
        "pg_current_xact_id()".to_owned()
    };
    let sql = format!(
        "update \"{schema}\".outbox set xid = {id}
         where xid >= pg_snapshot_xmax(pg_current_snapshot())"
    );
    let renumbered = sqlx::query(AssertSqlSafe(sql)).execute(session).await;
    renumbered.map(|_| ()).map_err(OperatorError::sql(
        "giving the outbox's rows transaction ids of this server",
    ))
}
