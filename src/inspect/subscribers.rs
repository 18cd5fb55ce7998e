//! Subscribers whose inbox is in the database: their instances, their pauses, and what they have
//! parked.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{AssertSqlSafe, FromRow, Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{Database, InspectError};

/// Age of a heartbeat above which an instance counts as silent. A heartbeat is sent every ten
/// seconds.
const SILENT_SECONDS: f64 = 60.0;

/// A subscriber, which is one consumer group.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct SubscriberStatus {
    pub(crate) name: String,
    /// The pause by an operator. `None` if the subscriber is not paused.
    pub(crate) pause: Option<SubscriberPause>,
    /// The instances of the last week. Those that run come first.
    pub(crate) instances: Vec<Instance>,
    pub(crate) parked: Vec<ParkedTopic>,
}

/// A pause by an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct SubscriberPause {
    pub(crate) since: DateTime<Utc>,
    pub(crate) reason: Option<String>,
    /// The operator and the role of the session.
    pub(crate) by: String,
}

/// State of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum InstanceState {
    Running,
    /// It sends no heartbeat, and has not reported its end: killed, or cut off from the database.
    Silent,
    Stopped,
}

/// One run of a subscriber.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Instance {
    pub(crate) id: Uuid,
    /// Host name and process id.
    pub(crate) host: String,
    /// Version of its code.
    pub(crate) version: String,
    pub(crate) state: InstanceState,
    /// The event types that it handles.
    pub(crate) types: Vec<String>,
    pub(crate) topics: Vec<String>,
    /// Destination of an event that has used up its attempts.
    pub(crate) escalation: String,
    pub(crate) started_at: DateTime<Utc>,
    /// Age of the last heartbeat.
    pub(crate) seen_seconds: f64,
    /// The pause that it has applied. `None` if it handles events.
    pub(crate) paused_since: Option<DateTime<Utc>>,
}

/// Parked events of one subscriber and topic.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ParkedTopic {
    pub(crate) topic: String,
    pub(crate) events: i64,
    pub(crate) aggregates: i64,
    /// An instance of the subscriber is running.
    #[serde(skip)]
    pub(crate) runs: bool,
    /// A running instance reads the topic.
    pub(crate) is_read: bool,
}

/// Returns every subscriber of the database, by name.
///
/// # Errors
///
/// Returns an error if the tables are missing or a query fails.
pub(crate) async fn subscribers(
    database: &Database,
) -> Result<Vec<SubscriberStatus>, InspectError> {
    let instances = sqlx::query_as::<_, InstanceRow>(AssertSqlSafe(
        database.sql(include_str!("subscribers/instances.sql")),
    ))
    .fetch_all(&database.pool)
    .await
    .map_err(|error| database.error(error))?;
    let parked = parked_topics(database).await?;
    let mut subscribers: BTreeMap<String, SubscriberStatus> = BTreeMap::new();
    for InstanceRow(name, instance) in instances {
        subscribers
            .entry(name)
            .or_default()
            .instances
            .push(instance);
    }
    for (name, topic) in parked {
        subscribers.entry(name).or_default().parked.push(topic);
    }
    for PauseRow(name, pause) in pauses(database).await? {
        subscribers.entry(name).or_default().pause = Some(pause);
    }
    Ok(subscribers
        .into_iter()
        .map(|(name, subscriber)| SubscriberStatus { name, ..subscriber })
        .collect())
}

/// Returns the subscribers that are paused by an operator.
///
/// # Errors
///
/// Returns an error if the table is missing or the query fails.
pub(crate) async fn pauses(database: &Database) -> Result<Vec<PauseRow>, InspectError> {
    let sql = database.sql(
        r#"select consumer, paused_since, reason, paused_by from "{schema}".subscriber_control"#,
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .fetch_all(&database.pool)
        .await
        .map_err(|error| database.error(error))
}

/// Returns the number of parked events for each subscriber and topic.
///
/// # Errors
///
/// Returns an error if the tables are missing or the query fails.
pub(crate) async fn parked_topics(
    database: &Database,
) -> Result<Vec<(String, ParkedTopic)>, InspectError> {
    let sql = database.sql(include_str!("subscribers/parked.sql"));
    let rows: Vec<ParkedRow> = sqlx::query_as(AssertSqlSafe(sql))
        .fetch_all(&database.pool)
        .await
        .map_err(|error| database.error(error))?;
    Ok(rows
        .into_iter()
        .map(|ParkedRow(consumer, topic)| (consumer, topic))
        .collect())
}

impl Instance {
    /// Returns `true` if the instance has applied this pause, or handles events if there is none.
    pub(crate) fn has_applied(&self, pause: Option<&SubscriberPause>) -> bool {
        self.paused_since == pause.map(|pause| pause.since)
    }
}

impl InstanceState {
    fn of(is_stopped: bool, seen_seconds: f64) -> Self {
        match is_stopped {
            true => Self::Stopped,
            false if seen_seconds > SILENT_SECONDS => Self::Silent,
            false => Self::Running,
        }
    }
}

/// The subscriber's name and an instance.
struct InstanceRow(String, Instance);

/// The subscriber's name and its pause.
#[derive(Debug)]
pub(crate) struct PauseRow(pub(crate) String, pub(crate) SubscriberPause);

/// The subscriber's name and a topic.
struct ParkedRow(String, ParkedTopic);

// === impl FromRow ===

impl FromRow<'_, PgRow> for InstanceRow {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let seen_seconds = row.try_get("seen_seconds")?;
        let instance = Instance {
            id: row.try_get("instance")?,
            host: row.try_get("host")?,
            version: row.try_get("version")?,
            state: InstanceState::of(row.try_get("is_stopped")?, seen_seconds),
            types: row.try_get("types")?,
            topics: row.try_get("topics")?,
            escalation: row.try_get("escalation")?,
            started_at: row.try_get("started_at")?,
            seen_seconds,
            paused_since: row.try_get("paused_since")?,
        };
        Ok(Self(row.try_get("consumer")?, instance))
    }
}

impl FromRow<'_, PgRow> for PauseRow {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let pause = SubscriberPause {
            since: row.try_get("paused_since")?,
            reason: row.try_get("reason")?,
            by: row.try_get("paused_by")?,
        };
        Ok(Self(row.try_get("consumer")?, pause))
    }
}

impl FromRow<'_, PgRow> for ParkedRow {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let topic = ParkedTopic {
            topic: row.try_get("topic")?,
            events: row.try_get("events")?,
            aggregates: row.try_get("aggregates")?,
            runs: row.try_get("runs")?,
            is_read: row.try_get("is_read")?,
        };
        Ok(Self(row.try_get("consumer")?, topic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_without_a_heartbeat_is_silent_unless_it_has_stopped() {
        for (is_stopped, seen_seconds, state) in [
            (false, 12.0, InstanceState::Running),
            (false, 61.0, InstanceState::Silent),
            (true, 61.0, InstanceState::Stopped),
            (true, 1.0, InstanceState::Stopped),
        ] {
            assert_eq!(InstanceState::of(is_stopped, seen_seconds), state);
        }
    }
}
