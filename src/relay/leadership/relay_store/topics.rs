//! The topics of the relay: pinned partition counts, holds while a topic grows, and event counts.

use std::{collections::HashMap, time::Duration};

use sqlx::AssertSqlSafe;

use super::{RelayStore, session::within};
use crate::relay::{error::Interruption, routing::template::Route};

/// Number of changes that commands have made to the relay's topics: at the start of this relay, and
/// at the last statement.
#[derive(Clone, Copy, Debug)]
pub(super) struct TopicChanges {
    pub(super) began: i64,
    pub(super) now: i64,
}

/// A topic whose number of partitions is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registered {
    pub(crate) topic: String,
    /// Number of partitions over which the relay distributes keys.
    pub(crate) partitions: i32,
    /// Remaining time for which a command holds the topic back.
    pub(crate) held: Option<Duration>,
}

impl RelayStore {
    /// Stores the numbers of partitions of topics to which this relay has sent nothing. If a
    /// command is growing such a topic, this relay takes part in the hold and acknowledges it.
    ///
    /// # Errors
    ///
    /// Returns an error if the database is unreachable.
    pub(crate) async fn register_topics(
        &mut self,
        partitions: &HashMap<String, i32>,
    ) -> Result<Vec<Registered>, Interruption> {
        // The row lock makes this statement and the end of a growth exclude each other. The fixed
        // order of the topics prevents deadlocks.
        let sql = format!(
            "insert into {schema}.relay_topic as t
                 (relay, topic, partitions, published, hold, hold_until, hold_acknowledged)
             select $1, topic, partitions, 0, hold, hold_until, hold is not null
             from (select * from unnest($2::text[], $3::integer[]) as new (topic, partitions)
                   order by topic) as new
             left join lateral (
                 select hold, hold_until from {schema}.relay_topic
                 where topic = new.topic and hold is not null and hold_until > now()
                 limit 1 for share
             ) as growing on true
             on conflict (relay, topic) do update set hold_acknowledged = t.hold is not null
             returning topic, partitions, extract(epoch from hold_until - now())::float8",
            schema = self.schema
        );
        let (topics, counts): (Vec<&str>, Vec<i32>) = partitions
            .iter()
            .map(|(topic, count)| (topic.as_str(), count))
            .unzip();
        let query = sqlx::query_as(AssertSqlSafe(sql))
            .bind(&self.name)
            .bind(topics)
            .bind(counts)
            .fetch_all(&mut self.session);
        let rows: Vec<(String, i32, Option<f64>)> = within("registering topics", query).await?;
        let registered = rows
            .into_iter()
            .map(|(topic, partitions, held)| Registered {
                topic,
                partitions,
                held: held.map(crate::postgres::seconds),
            });
        Ok(registered.collect())
    }

    /// Returns `true` if a command has changed the relay's topics since this relay started.
    pub(crate) fn topics_have_changed(&self) -> bool {
        self.topics.now != self.topics.began
    }

    /// Returns the number of topic changes by commands at the start of this relay.
    pub(crate) fn topic_changes(&self) -> i64 {
        self.topics.began
    }

    /// Returns, for each topic that this relay has used, the number of partitions over which it
    /// distributes keys.
    ///
    /// # Errors
    ///
    /// Returns an error if the database is unreachable.
    pub(crate) async fn pinned(&mut self) -> Result<HashMap<String, i32>, Interruption> {
        let sql = format!(
            "select topic, partitions from {}.relay_topic where relay = $1",
            self.schema
        );
        let rows = sqlx::query_as(AssertSqlSafe(sql))
            .bind(&self.name)
            .fetch_all(&mut self.session);
        Ok(within("reading the topics", rows)
            .await?
            .into_iter()
            .collect())
    }

    /// Returns the topics that are being grown with their remaining hold times, and acknowledges
    /// the holds. The acknowledgement means that this relay has no record in flight to these topics
    /// and sends none. Call it before the first event, and read the pinned partitions after it.
    ///
    /// # Errors
    ///
    /// Returns an error if the database is unreachable.
    pub(crate) async fn take_up_holds(&mut self) -> Result<Vec<(String, Duration)>, Interruption> {
        let sql = format!(
            "update {}.relay_topic set hold_acknowledged = true
                 where relay = $1 and hold is not null and hold_until > now()
             returning topic, extract(epoch from hold_until - now())::float8",
            self.schema
        );
        let held = sqlx::query_as(AssertSqlSafe(sql))
            .bind(&self.name)
            .fetch_all(&mut self.session);
        let held: Vec<(String, f64)> = within("acknowledging holds on topics", held).await?;
        Ok(held
            .into_iter()
            .map(|(topic, seconds)| (topic, crate::postgres::seconds(seconds)))
            .collect())
    }

    /// Ends the holds whose time is over, and returns their topics.
    ///
    /// # Errors
    ///
    /// Returns an error if the database is unreachable.
    pub(crate) async fn end_holds(&mut self) -> Result<Vec<String>, Interruption> {
        let sql = format!(
            "with ended as (
                 update {schema}.relay_topic set hold = null, hold_until = null,
                     hold_acknowledged = false
                 where relay = $1 and hold is not null and hold_until <= now() returning topic
             ), told as (
                 update {schema}.relay set topic_changes = topic_changes + 1
                     where name = $1 and exists (select from ended)
             )
             select topic from ended",
            schema = self.schema
        );
        let ended = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(&self.name)
            .fetch_all(&mut self.session);
        within("ending holds on topics", ended).await
    }

    /// Adds to the counts per topic.
    ///
    /// # Errors
    ///
    /// Returns an error if the database is unreachable.
    pub(crate) async fn count_topics(
        &mut self,
        counts: &[(&Route, u64)],
    ) -> Result<(), Interruption> {
        let sql = format!(
            "insert into {}.relay_topic as t (relay, topic, partitions, published)
             select $1, c.topic, c.partitions, c.published
             from unnest($2::text[], $3::int[], $4::bigint[])
                 as c (topic, partitions, published)
             on conflict (relay, topic) do update set published = t.published + excluded.published",
            self.schema
        );
        let topics: Vec<&str> = counts
            .iter()
            .map(|(route, _)| route.topic.as_str())
            .collect();
        let partitions: Vec<i32> = counts.iter().map(|(route, _)| route.partitions).collect();
        let published: Vec<i64> = counts
            .iter()
            .map(|(_, published)| published.cast_signed())
            .collect();
        let query = sqlx::query(AssertSqlSafe(sql))
            .bind(&self.name)
            .bind(topics)
            .bind(partitions)
            .bind(published);
        within(
            "counting published events",
            query.execute(&mut self.session),
        )
        .await
        .map(|_| ())
    }
}
