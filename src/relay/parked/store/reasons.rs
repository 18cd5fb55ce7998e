//! Changed reasons of events that stay parked.

use sqlx::AssertSqlSafe;

use super::{UNFOLDED_AT_ONCE, begin, column};
use crate::{
    postgres::encodable::{bytes_of, encodable},
    relay::{
        error::Interruption,
        leadership::relay_store::{RelayStore, within},
        parked::set::Aggregate,
    },
};

/// An event that waited for a topic and now waits for another reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Converted {
    seq: i64,
    reason: Option<String>,
    waits_for: Option<String>,
}

impl Converted {
    /// The event itself is undeliverable.
    pub(crate) fn wrong(seq: i64, reason: String) -> Self {
        Self {
            seq,
            reason: Some(reason),
            waits_for: None,
        }
    }

    /// The event waits behind another one of its aggregate.
    pub(crate) fn behind(seq: i64) -> Self {
        Self {
            seq,
            reason: None,
            waits_for: None,
        }
    }

    /// The event now goes to another topic, which is unusable too.
    pub(crate) fn other_topic(seq: i64, topic: String, reason: String) -> Self {
        Self {
            seq,
            reason: Some(reason),
            waits_for: Some(topic),
        }
    }
}

/// Stores a new reason for the first events that wait for a topic. Only these are read.
///
/// # Errors
///
/// Returns an error if the database is unreachable.
pub(crate) async fn restate(
    relay_store: &mut RelayStore,
    topic: &str,
    reason: &str,
) -> Result<(), Interruption> {
    let doing = "storing the reason why events wait for a topic";
    let (session, schema, name, _) = relay_store.parts();
    let sql = format!(
        "update {schema}.parked set reason = {} where relay = $1 and seq in (
             select seq from {schema}.parked where relay = $1 and waits_for = $2 order by seq
                 limit {UNFOLDED_AT_ONCE})",
        encodable("$3::bytea")
    );
    let update = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(topic)
        .bind(bytes_of(reason))
        .execute(session);
    within(doing, update).await.map(|_| ())
}

/// Records that an event of the aggregate is still or newly undeliverable. It waits again, and so
/// do the events that were to follow it.
///
/// # Errors
///
/// Returns [`Interruption::LeaseLost`] if another relay has taken over.
pub(crate) async fn failed(
    relay_store: &mut RelayStore,
    aggregate: &Aggregate,
    seq: i64,
    reason: &str,
) -> Result<(), Interruption> {
    let doing = "parking an event again";
    let (session, schema, name, epoch) = relay_store.parts();
    let sql = format!(
        "update {schema}.parked set action = nullif(action, 'retry'),
             tries = tries + (seq = $4)::int,
             reason = case when seq = $4 then {} else reason end
         where relay = $1 and aggregatetype = $2 and aggregateid = $3 and waits_for is null
             and (seq = $4 or action = 'retry')",
        encodable("$5::bytea")
    );
    let mut tx = begin(session, schema, name, epoch).await?;
    let update = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(&aggregate.kind)
        .bind(&aggregate.id)
        .bind(seq)
        .bind(bytes_of(reason));
    within(doing, update.execute(&mut *tx)).await?;
    within(doing, tx.commit()).await
}

/// Records that these events no longer wait for their topic but for another reason.
///
/// # Errors
///
/// Returns [`Interruption::LeaseLost`] if another relay has taken over.
pub(crate) async fn convert(
    relay_store: &mut RelayStore,
    converted: &[Converted],
) -> Result<(), Interruption> {
    let doing = "parking events that waited for a topic";
    let (session, schema, name, epoch) = relay_store.parts();
    let sql = format!(
        "update {schema}.parked p set reason = {}, waits_for = c.waits_for,
             action = nullif(action, 'retry'), tries = tries + 1
         from unnest($2::bigint[], $3::bytea[], $4::text[]) as c (seq, reason, waits_for)
             where p.relay = $1 and p.seq = c.seq",
        encodable("c.reason")
    );
    let mut tx = begin(session, schema, name, epoch).await?;
    let update = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(column(converted, |one| one.seq))
        .bind(column(converted, |one| one.reason.as_deref().map(bytes_of)))
        .bind(column(converted, |one| one.waits_for.as_deref()));
    within(doing, update.execute(&mut *tx)).await?;
    within(doing, tx.commit()).await
}
