//! The first waiting events of an aggregate or a topic.

use sqlx::{AssertSqlSafe, Row as _, postgres::PgRow};

use crate::relay::{
    error::Interruption,
    leadership::relay_store::{RelayStore, within},
    parked::set::Aggregate,
    position::Position,
};

/// The columns of [`Parked`].
const PARKED: &str = "p.seq, p.reason, p.action, o.xid::text, p.parked_at > clock_timestamp() - \
                      interval '10 minutes', p.to_seq is not null";

/// A parked event or a range, with the decision about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parked {
    pub(crate) seq: i64,
    /// The reason why it is undeliverable. `None` if it waits behind another event.
    pub(crate) reason: Option<String>,
    pub(crate) action: Option<Action>,
    pub(crate) is_range: bool,
    /// The transaction that wrote it. `None` if its row is not in the outbox.
    pub(crate) xid: Option<u64>,
    /// It was parked so recently that its row may not be visible yet: a commit waits for its
    /// synchronous standby after it is streamed.
    pub(crate) lately: bool,
}

/// Decision of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Retry,
    Discard,
}

impl Parked {
    /// Returns `true` if the position has passed the event. An event without a visible row counts
    /// as passed, unless it was parked recently.
    pub(crate) fn is_passed(&self, position: &Position) -> bool {
        self.xid
            .map_or(!self.lately, |xid| position.covers(xid, self.seq))
    }
}

fn parked(row: &PgRow) -> Result<Parked, sqlx::Error> {
    let action = row.try_get::<Option<String>, _>(2)?;
    let action = action.map(|word| {
        if word == "discard" {
            Action::Discard
        } else {
            Action::Retry
        }
    });
    let xid = row
        .try_get::<Option<String>, _>(3)?
        .and_then(|xid| xid.parse().ok());
    Ok(Parked {
        seq: row.try_get(0)?,
        reason: row.try_get(1)?,
        action,
        xid,
        lately: row.try_get(4)?,
        is_range: row.try_get(5)?,
    })
}

/// Returns the first waiting events of an aggregate, in order.
///
/// # Errors
///
/// Returns an error if the database is unreachable.
pub(crate) async fn first(
    relay_store: &mut RelayStore,
    aggregate: &Aggregate,
    limit: usize,
) -> Result<Vec<Parked>, Interruption> {
    let doing = "reading an aggregate's parked events";
    let (session, schema, name, _) = relay_store.parts();
    let sql = format!(
        "select {PARKED} from {schema}.parked p left join {schema}.outbox o on o.seq = p.seq
         where p.relay = $1 and p.aggregatetype = $2 and p.aggregateid = $3 and p.waits_for is null
             order by p.seq limit $4"
    );
    let query = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(&aggregate.kind)
        .bind(&aggregate.id)
        .bind(limit as i64);
    let rows = within(doing, query.fetch_all(session)).await?;
    rows.iter()
        .map(parked)
        .collect::<Result<_, _>>()
        .map_err(Interruption::sql(doing))
}

/// Returns the first events that wait for a topic, in order.
///
/// # Errors
///
/// Returns an error if the database is unreachable.
pub(crate) async fn first_of_topic(
    relay_store: &mut RelayStore,
    topic: &str,
    limit: usize,
) -> Result<Vec<(Aggregate, Parked)>, Interruption> {
    let doing = "reading the events that wait for a topic";
    let (session, schema, name, _) = relay_store.parts();
    let sql = format!(
        "select {PARKED}, p.aggregatetype, p.aggregateid from {schema}.parked p
             left join {schema}.outbox o on o.seq = p.seq
         where p.relay = $1 and p.waits_for = $2 order by p.seq limit $3"
    );
    let read = |row: &PgRow| -> Result<_, sqlx::Error> {
        Ok((
            Aggregate {
                kind: row.try_get(6)?,
                id: row.try_get(7)?,
            },
            parked(row)?,
        ))
    };
    let query = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(topic)
        .bind(limit as i64);
    let rows = within(doing, query.fetch_all(session)).await?;
    rows.iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(Interruption::sql(doing))
}
