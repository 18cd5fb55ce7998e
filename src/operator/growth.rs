//! Adding partitions to a topic without reordering the events of an aggregate.
//!
//! More partitions move keys. Before the first key is placed by the new count, all events that were
//! placed by the old count must be consumed:
//!
//! ```text
//! events flow until every consumer group is near the end
//! hold ─▶ every relay that publishes to the topic restarts, stops sending to it, and acknowledges
//!      ─▶ every consumer group reads to the end ─▶ Kafka adds the partitions
//!      ─▶ pin: the new count takes effect, and the hold ends
//! ```
//!
//! A hold delays the events of the topic and everything that the source delivers after the first of
//! them. To publish the other events meanwhile, the relay would have to record durably which events
//! it has not sent. It could park them, but parked events take one row each and are released one
//! aggregate at a time, which takes longer than the hold. Instead the hold is short: it begins when
//! consumers are near the end, and it expires.
//!
//! A relay that publishes to the topic for the first time during the hold stores its number of
//! partitions before its first record (`RelayStore::register_topics`). It thereby takes part in the
//! hold, and uses the new count. A row lock makes this step and pin exclude each other.
//!
//! Each step is idempotent, so an interrupted command can be run again or aborted. *Pin* is the
//! only step that moves keys, and it succeeds only during the hold. A relay ends an expired hold;
//! pin verifies the hold in its own transaction.
//!
//! Unlike other commands on relays, this one does not take their leases. A lease excludes a leader,
//! but not the records that an earlier leader has in flight, which may still be committed. A relay
//! acknowledges a hold only after it has fenced off every earlier producer and before its own first
//! record. The relays also keep running, so events of other topics flow until the hold begins.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::{OperatorError, end_transaction, lease};
use crate::inspect::topics::{PinnedTopic, topics};

/// A hold on a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    id: Uuid,
    /// The relays that publish to the topic.
    pub(crate) relays: Vec<String>,
    /// An earlier run of the command set the hold.
    pub(crate) taken_up: bool,
}

/// Makes every relay hold back the events of `topic` for at most `time`. Resumes an existing hold.
///
/// # Errors
///
/// Returns a refusal if no relay has published to the topic, or if a relay uses more partitions
/// than `partitions`.
pub(crate) async fn hold(
    session: &mut PgConnection,
    schema: &str,
    topic: &str,
    partitions: i32,
    time: Duration,
) -> Result<Hold, OperatorError> {
    let known: Vec<PinnedTopic> = topics(session, schema)
        .await
        .map_err(OperatorError::sql("reading the topics"))?
        .into_iter()
        .filter(|one| one.topic == topic)
        .collect();
    if known.is_empty() {
        return Err(OperatorError::Refused(format!(
            "no relay of schema {schema} has published to topic `{topic}`, so no keys are placed \
             there: add partitions with kafka-topics.sh"
        )));
    }
    if let Some(more) = known.iter().find(|one| one.partitions > partitions) {
        return Err(OperatorError::Refused(format!(
            "relay `{}` already spreads keys over {} partitions of `{topic}`, and a topic cannot \
             shrink",
            more.relay, more.partitions
        )));
    }
    let sql = format!(
        "with there as (
             select hold from \"{schema}\".relay_topic
             where topic = $1 and hold is not null and hold_until > now() limit 1
         ),
         held as (
             update \"{schema}\".relay_topic t
             set hold = chosen.id, hold_until = now() + make_interval(secs => $3),
                 hold_acknowledged = t.hold_acknowledged
                     and t.hold is not distinct from chosen.id and t.hold_until > now()
             from (select coalesce((select hold from there), $2) as id) chosen
             where topic = $1 returning t.relay, t.hold, t.hold_acknowledged
         ), told as (
             update \"{schema}\".relay r set topic_changes = topic_changes + 1
             from held where r.name = held.relay and not held.hold_acknowledged
         )
         select hold, array_agg(relay order by relay) from held group by hold"
    );
    let ours = Uuid::now_v7();
    let held = sqlx::query_as(AssertSqlSafe(sql))
        .bind(topic)
        .bind(ours)
        .bind(time.as_secs_f64())
        .fetch_one(session)
        .await;
    let (id, relays): (Uuid, Vec<String>) =
        held.map_err(OperatorError::sql("holding the topic"))?;
    Ok(Hold {
        id,
        relays,
        taken_up: id != ours,
    })
}

/// A relay that has not acknowledged a hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unacknowledged {
    pub(crate) relay: String,
    /// The process that leads, as `host:pid`. `None` if no process leads.
    pub(crate) leader: Option<String>,
}

/// Returns the relays that may still publish to the topic.
///
/// # Errors
///
/// Returns a refusal if the hold has ended, or the error of a failed query.
pub(crate) async fn not_acknowledged(
    session: &mut PgConnection,
    schema: &str,
    topic: &str,
    hold: &Hold,
) -> Result<Vec<Unacknowledged>, OperatorError> {
    let sql = format!(
        "select relay, hold is not distinct from $2 and hold_until > now(), hold_acknowledged
         from \"{schema}\".relay_topic where topic = $1 order by relay"
    );
    let rows = sqlx::query_as(AssertSqlSafe(sql))
        .bind(topic)
        .bind(hold.id)
        .fetch_all(&mut *session)
        .await;
    let rows: Vec<(String, bool, bool)> = rows.map_err(OperatorError::sql("reading the hold"))?;
    if rows.iter().any(|(_, held, _)| !held) || rows.is_empty() {
        return Err(over(topic));
    }
    let mut waiting = Vec::new();
    for (relay, ..) in rows.into_iter().filter(|(.., acknowledged)| !acknowledged) {
        let leader = lease::leader(session, &relay).await?;
        waiting.push(Unacknowledged {
            relay,
            leader: leader.map(|leader| leader.process),
        });
    }
    Ok(waiting)
}

/// Spreads keys over `partitions` from now on, and ends the hold.
///
/// # Errors
///
/// Returns a refusal and changes nothing if the hold has ended, or if another relay has started to
/// publish to the topic.
pub(crate) async fn pin(
    session: &mut PgConnection,
    schema: &str,
    topic: &str,
    hold: &Hold,
    partitions: i32,
) -> Result<(), OperatorError> {
    let doing = "pinning the partitions";
    sqlx::raw_sql("begin isolation level read committed")
        .execute(&mut *session)
        .await
        .map_err(OperatorError::sql(doing))?;
    let pinned = pin_all(session, schema, topic, hold, partitions).await;
    end_transaction(session, pinned.is_ok(), doing).await?;
    pinned
}

async fn pin_all(
    session: &mut PgConnection,
    schema: &str,
    topic: &str,
    hold: &Hold,
    partitions: i32,
) -> Result<(), OperatorError> {
    let doing = "pinning the partitions";
    // Waits for relays that are taking part in the hold. The next statement then sees their rows.
    let lock =
        format!("select from \"{schema}\".relay_topic where topic = $1 order by relay for update");
    sqlx::query(AssertSqlSafe(lock))
        .bind(topic)
        .execute(&mut *session)
        .await
        .map_err(OperatorError::sql(doing))?;
    // A single statement changes either all relays of the topic or none.
    let sql = format!(
        "with ready as (
             select bool_and(
                 hold is not distinct from $2 and hold_until > now() and hold_acknowledged
             ) as all_held
             from \"{schema}\".relay_topic where topic = $1
         ), pinned as (
             update \"{schema}\".relay_topic t
             set partitions = $3, hold = null, hold_until = null, hold_acknowledged = false
             from ready where t.topic = $1 and ready.all_held returning t.relay
         ), told as (
             update \"{schema}\".relay r set topic_changes = topic_changes + 1
             from pinned where r.name = pinned.relay
         )
         select count(*) from pinned"
    );
    let pinned = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(topic)
        .bind(hold.id)
        .bind(partitions)
        .fetch_one(session)
        .await;
    let pinned: i64 = pinned.map_err(OperatorError::sql(doing))?;
    if pinned == 0 {
        Err(over(topic))
    } else {
        Ok(())
    }
}

/// Ends a hold. Returns `false` if there was none. Keys stay in their partitions.
///
/// # Errors
///
/// Returns the error of a failed query.
pub(crate) async fn release(
    session: &mut PgConnection,
    schema: &str,
    topic: &str,
) -> Result<bool, OperatorError> {
    let sql = format!(
        "with released as (
             update \"{schema}\".relay_topic
             set hold = null, hold_until = null, hold_acknowledged = false
             where topic = $1 and hold is not null returning relay
         ), told as (
             update \"{schema}\".relay r set topic_changes = topic_changes + 1
             from released where r.name = released.relay
         )
         select count(*) from released"
    );
    let released = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(topic)
        .fetch_one(session)
        .await;
    released
        .map(|count: i64| count > 0)
        .map_err(OperatorError::sql("ending the hold"))
}

fn over(topic: &str) -> OperatorError {
    OperatorError::Refused(format!(
        "the hold on `{topic}` has ended (it expired, another command ended it, or another relay \
         started to publish to the topic): keys stay in their partitions; run the command again"
    ))
}
