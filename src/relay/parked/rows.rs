//! The table `parked`: all SQL on it that a relay runs. Every write checks the epoch, and is on disk when it returns.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Postgres, Row as _, Transaction};

use super::{Aggregate, Reference};
use crate::relay::{
    error::Interruption,
    ledger::{Ledger, within},
};

/// A parked event, and what was decided of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parked {
    pub(super) seq: i64,
    pub(super) id: uuid::Uuid,
    /// Why it cannot be delivered; `None`: it waits behind another.
    pub(super) reason: Option<String>,
    pub(super) action: Option<Action>,
    /// The transaction that wrote it; `None`: its row is not in the outbox.
    pub(super) xid: Option<u64>,
    /// It was parked so lately that its row may not be visible yet: a commit waits for its synchronous standby after it is streamed.
    pub(super) lately: bool,
}

/// What a person has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Retry,
    Discard,
}

/// Every aggregate that waits: its events, and whether nothing is wrong with the first.
///
/// # Errors
/// When the database cannot be reached.
pub(in crate::relay) async fn load(ledger: &mut Ledger) -> Result<Vec<(Aggregate, Vec<i64>, bool)>, Interruption> {
    let doing = "reading what is parked";
    let (session, schema, name, _) = ledger.parts();
    let sql = format!(
        "select aggregatetype, aggregateid, array_agg(seq order by seq), (array_agg(reason order by seq))[1] is null
         from {schema}.parked where relay = $1 group by 1, 2"
    );
    let rows = within(doing, sqlx::query_as(AssertSqlSafe(sql)).bind(name).fetch_all(session)).await?;
    let aggregate = |(kind, id, events, ready): (String, String, Vec<i64>, bool)| (Aggregate { kind, id }, events, ready);
    Ok(rows.into_iter().map(aggregate).collect())
}

/// Stores events that wait.
///
/// # Errors
/// [`Interruption::LeaseLost`] if another relay has taken over.
pub(in crate::relay) async fn store(ledger: &mut Ledger, events: &[Reference]) -> Result<(), Interruption> {
    let doing = "parking events";
    let (session, schema, name, epoch) = ledger.parts();
    let sql = format!(
        "insert into {schema}.parked (relay, seq, id, aggregatetype, aggregateid, topic, reason, tries)
         select $1, seq, id, aggregatetype, aggregateid, topic, reason, (reason is not null)::int
         from unnest($2::bigint[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[])
             as e (seq, id, aggregatetype, aggregateid, topic, reason)
         on conflict do nothing"
    );
    let mut tx = begin(session, schema, name, epoch).await?;
    let insert = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(events.iter().map(|event| event.seq).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.id).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.aggregate.kind.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.aggregate.id.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.topic.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.reason.as_deref()).collect::<Vec<_>>());
    within(doing, insert.execute(&mut *tx)).await?;
    within(doing, tx.commit()).await
}

/// Forgets events that are published or given up.
///
/// # Errors
/// [`Interruption::LeaseLost`] if another relay has taken over.
pub(in crate::relay) async fn delete(ledger: &mut Ledger, seqs: &[i64]) -> Result<(), Interruption> {
    let doing = "taking released events off the parked ones";
    let (session, schema, name, epoch) = ledger.parts();
    let sql = format!("delete from {schema}.parked where relay = $1 and seq = any ($2)");
    let mut tx = begin(session, schema, name, epoch).await?;
    within(doing, sqlx::query(AssertSqlSafe(sql)).bind(name).bind(seqs).execute(&mut *tx)).await?;
    within(doing, tx.commit()).await
}

/// An event of the aggregate is undeliverable still, or newly: it waits again, and so does what was to follow it.
///
/// # Errors
/// [`Interruption::LeaseLost`] if another relay has taken over.
pub(super) async fn failed(ledger: &mut Ledger, aggregate: &Aggregate, seq: i64, reason: &str) -> Result<(), Interruption> {
    let doing = "parking an event again";
    let (session, schema, name, epoch) = ledger.parts();
    let sql = format!(
        "update {schema}.parked set action = nullif(action, 'retry'), tries = tries + (seq = $4)::int,
             reason = case when seq = $4 then $5 else reason end
         where relay = $1 and aggregatetype = $2 and aggregateid = $3 and (seq = $4 or action = 'retry')"
    );
    let mut tx = begin(session, schema, name, epoch).await?;
    let update = sqlx::query(AssertSqlSafe(sql)).bind(name).bind(&aggregate.kind).bind(&aggregate.id).bind(seq).bind(reason);
    within(doing, update.execute(&mut *tx)).await?;
    within(doing, tx.commit()).await
}

/// Aggregates of which a person has decided something.
///
/// # Errors
/// When the database cannot be reached.
pub(super) async fn decided(ledger: &mut Ledger) -> Result<Vec<Aggregate>, Interruption> {
    let doing = "reading what is decided of parked events";
    let (session, schema, name, _) = ledger.parts();
    let sql = format!("select distinct aggregatetype, aggregateid from {schema}.parked where relay = $1 and action is not null limit 1000");
    let rows: Vec<(String, String)> = within(doing, sqlx::query_as(AssertSqlSafe(sql)).bind(name).fetch_all(session)).await?;
    Ok(rows.into_iter().map(|(kind, id)| Aggregate { kind, id }).collect())
}

/// The first events of an aggregate that wait, in their order.
///
/// # Errors
/// When the database cannot be reached.
pub(super) async fn first(ledger: &mut Ledger, aggregate: &Aggregate, limit: usize) -> Result<Vec<Parked>, Interruption> {
    let doing = "reading an aggregate's parked events";
    let (session, schema, name, _) = ledger.parts();
    let sql = format!(
        "select p.seq, p.id, p.reason, p.action, o.xid::text, p.parked_at > clock_timestamp() - interval '10 minutes'
         from {schema}.parked p left join {schema}.outbox o on o.seq = p.seq
         where p.relay = $1 and p.aggregatetype = $2 and p.aggregateid = $3 order by p.seq limit $4"
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(name).bind(&aggregate.kind).bind(&aggregate.id).bind(limit as i64);
    let read = |row: &sqlx::postgres::PgRow| -> Result<Parked, sqlx::Error> {
        let action = row.try_get::<Option<String>, _>(3)?;
        let action = action.map(|word| if word == "discard" { Action::Discard } else { Action::Retry });
        let xid = row.try_get::<Option<String>, _>(4)?.and_then(|xid| xid.parse().ok());
        Ok(Parked { seq: row.try_get(0)?, id: row.try_get(1)?, reason: row.try_get(2)?, action, xid, lately: row.try_get(5)? })
    };
    let rows = within(doing, query.fetch_all(session)).await?;
    rows.iter().map(read).collect::<Result<_, _>>().map_err(Interruption::sql(doing))
}

/// A transaction that is on disk, and on a synchronous standby, when it has committed: what is lost here is lost for good, since the
/// position passes it. Holds the relay's row, so that no other relay takes over in between.
async fn begin<'s>(session: &'s mut PgConnection, schema: &str, name: &str, epoch: i64) -> Result<Transaction<'s, Postgres>, Interruption> {
    let doing = "checking that this relay leads";
    let mut tx = within(doing, session.begin()).await?;
    within(doing, sqlx::raw_sql("set local synchronous_commit = on").execute(&mut *tx)).await?;
    let sql = format!("update {schema}.relay set heartbeat_at = now() where name = $1 and epoch = $2");
    let held = within(doing, sqlx::query(AssertSqlSafe(sql)).bind(name).bind(epoch).execute(&mut *tx)).await?;
    if held.rows_affected() == 1 { Ok(tx) } else { Err(Interruption::LeaseLost) }
}
