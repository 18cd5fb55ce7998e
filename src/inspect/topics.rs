//! Topics that relays publish to, with the number of partitions that keys are spread over.

use sqlx::{AssertSqlSafe, PgConnection};

/// A topic of a relay.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct PinnedTopic {
    pub(crate) topic: String,
    pub(crate) relay: String,
    /// Number of partitions that keys are spread over.
    pub(crate) partitions: i32,
    pub(crate) published: i64,
    /// Remaining time of the hold in seconds, during which nothing is published to the topic.
    pub(crate) held_seconds: Option<f64>,
    pub(crate) hold_acknowledged: bool,
}

/// Returns every topic of every relay.
///
/// # Errors
///
/// Returns the error of a failed query.
pub(crate) async fn topics(
    session: &mut PgConnection,
    schema: &str,
) -> Result<Vec<PinnedTopic>, sqlx::Error> {
    let sql = format!(
        "select topic, relay, partitions, published, hold_acknowledged,
             case when hold is not null
                 then greatest(extract(epoch from hold_until - now()), 0)::float8
             end as held_seconds
         from \"{schema}\".relay_topic order by topic, relay"
    );
    let rows = sqlx::query_as(AssertSqlSafe(sql))
        .fetch_all(session)
        .await?;
    let read =
        |(topic, relay, partitions, published, hold_acknowledged, held_seconds)| PinnedTopic {
            topic,
            relay,
            partitions,
            published,
            held_seconds,
            hold_acknowledged,
        };
    Ok(rows.into_iter().map(read).collect())
}
