//! A second event with the source and id of a stored one.
//!
//! The primary key of `inbox` does not contain the topic. Earlier versions of Tidings ignored the
//! topic, and one of them may run next to this one during a deployment. Without the topic in the
//! key, both versions find each other's rows. The topic is compared here, only for events that are
//! stored already:
//!
//! | the stored row | the event is |
//! |---|---|
//! | has no topic (an earlier version wrote it) | a duplicate |
//! | has the same topic, and the same fingerprint or none | a duplicate |
//! | has the same topic and another fingerprint | conflicting: a dead letter |
//! | has another topic | another event: stored in `inbox_collision`, whose key has the topic |

use std::sync::Arc;

use sqlx::{AssertSqlSafe, PgConnection};

use super::{OpenInbox, Remembered, identity::Identity, of_inbox, pipelined_tx::BegunTx};
use crate::{postgres::SchemaName, subscriber::handler::HandlerError};

/// The statements for events that are stored already, for one consumer.
#[derive(Debug)]
pub(crate) struct Collisions {
    /// Selects the row of a source and id.
    stored: Arc<str>,
    /// Stores an event whose source and id belong to another topic.
    insert: Arc<str>,
    stored_here: Arc<str>,
    /// Extends the life of the first topic's row. Without that row, this event would be taken for
    /// the first one.
    keep: Arc<str>,
}

/// Relation of an event to the stored row with its source and id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The stored row is of the same event.
    Duplicate,
    /// The stored row is of another event from the same topic.
    Conflicting,
    /// The stored row is of another event from another topic.
    OtherTopic,
}

impl Collisions {
    pub(crate) fn new(schema: &SchemaName) -> Self {
        let of = r#"consumer = $1 and source = $2 and event_id = $3"#;
        Self {
            stored: format!(r#"select topic, fingerprint from "{schema}".inbox where {of}"#).into(),
            insert: format!(
                r#"insert into "{schema}".inbox_collision
                          (consumer, source, event_id, topic, fingerprint)
                   values ($1, $2, $3, $4, $5)
                   on conflict do nothing"#
            )
            .into(),
            stored_here: format!(
                r#"select topic, fingerprint from "{schema}".inbox_collision
                   where {of} and topic = $4"#
            )
            .into(),
            keep: format!(
                r#"update "{schema}".inbox set handled_at = pg_catalog.now() where {of}"#
            )
            .into(),
        }
    }
}

impl OpenInbox {
    /// Handles the case that the source and id of an event are already stored. Uses its own
    /// transaction. Returns `None` if they are not stored any more.
    ///
    /// # Errors
    ///
    /// Returns an error if the event conflicts with the stored one, or if a query fails.
    pub(crate) async fn remember_again(
        &self,
        identity: &Identity,
    ) -> Result<Option<Remembered>, HandlerError> {
        let begun = self
            .sessions
            .begin(|form| self.message(form, format_args!("select")));
        let BegunTx {
            mut transaction,
            lease,
            ..
        } = begun.await.map_err(of_inbox)?;
        let standing = self
            .standing(&mut transaction, identity)
            .await
            .map_err(of_inbox)?;
        let standing = match standing {
            Some(Standing::OtherTopic)
                if self
                    .store_collision(&mut transaction, identity)
                    .await
                    .map_err(of_inbox)? =>
            {
                return Ok(Some(Remembered::New(transaction, lease, None)));
            }
            Some(Standing::OtherTopic) => {
                let stored = self
                    .stored(
                        &mut transaction,
                        &self.collisions.stored_here,
                        identity,
                        true,
                    )
                    .await
                    .map_err(of_inbox)?;
                stored.map(|stored| standing_of(&stored, identity))
            }
            other => other,
        };
        lease.roll_back(transaction).await;
        match standing {
            Some(Standing::Conflicting) => Err(identity.clone().conflicting()),
            Some(_) => Ok(Some(Remembered::Duplicate)),
            None => Ok(None),
        }
    }

    async fn standing(
        &self,
        connection: &mut PgConnection,
        identity: &Identity,
    ) -> Result<Option<Standing>, sqlx::Error> {
        let stored = self
            .stored(connection, &self.collisions.stored, identity, false)
            .await?;
        Ok(stored.map(|stored| standing_of(&stored, identity)))
    }

    async fn stored(
        &self,
        connection: &mut PgConnection,
        statement: &Arc<str>,
        identity: &Identity,
        with_topic: bool,
    ) -> Result<Option<(Option<String>, Option<i64>)>, sqlx::Error> {
        // Not prepared, because a pooler may use another connection for the next transaction.
        let query = sqlx::query_as(AssertSqlSafe(statement.clone())).persistent(false);
        let query = query
            .bind(&self.consumer)
            .bind(&identity.source)
            .bind(&identity.id);
        let query = if with_topic {
            query.bind(&identity.topic)
        } else {
            query
        };
        query.fetch_optional(connection).await
    }

    /// Stores the event in addition to the first topic's. Returns `false` if it is stored already.
    async fn store_collision(
        &self,
        connection: &mut PgConnection,
        identity: &Identity,
    ) -> Result<bool, sqlx::Error> {
        let insert = sqlx::query(AssertSqlSafe(self.collisions.insert.clone())).persistent(false);
        let insert = insert
            .bind(&self.consumer)
            .bind(&identity.source)
            .bind(&identity.id)
            .bind(&identity.topic);
        if insert
            .bind(identity.fingerprint)
            .execute(&mut *connection)
            .await?
            .rows_affected()
            == 0
        {
            return Ok(false);
        }
        let keep = sqlx::query(AssertSqlSafe(self.collisions.keep.clone())).persistent(false);
        keep.bind(&self.consumer)
            .bind(&identity.source)
            .bind(&identity.id)
            .execute(connection)
            .await?;
        tracing::warn!(
            consumer = self.consumer,
            event.id = identity.id,
            event.source = identity.source,
            topic = identity.topic,
            "an event has the source and id of one from another topic; both are handled, but their \
             publishers should not share a source"
        );
        Ok(true)
    }
}

/// Compares an event with the topic and fingerprint of a stored row.
pub(crate) fn standing_of(
    (topic, fingerprint): &(Option<String>, Option<i64>),
    identity: &Identity,
) -> Standing {
    match (topic, fingerprint) {
        (None, _) => Standing::Duplicate,
        (Some(topic), _) if *topic != identity.topic => Standing::OtherTopic,
        (_, Some(fingerprint)) if *fingerprint != identity.fingerprint => Standing::Conflicting,
        _ => Standing::Duplicate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_row_counts_for_its_topic_and_without_one_for_all() {
        let identity = Identity {
            source: "/s".into(),
            id: "1".into(),
            topic: "order".into(),
            fingerprint: 5,
        };
        for (topic, fingerprint, standing) in [
            (None, None, Standing::Duplicate),
            (None, Some(6), Standing::Duplicate),
            (Some("order"), None, Standing::Duplicate),
            (Some("order"), Some(5), Standing::Duplicate),
            (Some("order"), Some(6), Standing::Conflicting),
            (Some("payment"), Some(5), Standing::OtherTopic),
            (Some("payment"), None, Standing::OtherTopic),
        ] {
            assert_eq!(
                standing_of(&(topic.map(str::to_owned), fingerprint), &identity),
                standing,
                "{topic:?} {fingerprint:?}"
            );
        }
    }
}
