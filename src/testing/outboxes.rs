//! Outboxes of the handlers' databases, read by the bus in place of a relay.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use uuid::Uuid;

use crate::event::Envelope;
use crate::outbox::{Seen, move_scheduled, published_since, scheduled};
use crate::postgres::SchemaName;

/// All outboxes of a bus.
#[derive(Debug, Default)]
pub(super) struct Outboxes {
    all: Vec<One>,
    /// Scheduled events in publication order: by virtual due time, outbox and number.
    due: BTreeMap<(Duration, usize, i64), Uuid>,
}

#[derive(Debug)]
struct One {
    pool: PgPool,
    schema: SchemaName,
    seen: Seen,
    /// Scheduled events that are already recorded or existed before.
    scheduled: HashSet<Uuid>,
}

impl Outboxes {
    /// Adds the outbox of a database. Events that it already contains are ignored.
    pub(super) async fn add(
        &mut self,
        pool: &PgPool,
        schema: &SchemaName,
    ) -> Result<(), sqlx::Error> {
        let same = |one: &One| {
            Arc::ptr_eq(&one.pool.connect_options(), &pool.connect_options())
                && one.schema == *schema
        };
        if self.all.iter().any(same) {
            return Ok(());
        }
        let seen = Seen::all(pool, schema).await?;
        let before = scheduled(pool, schema)
            .await?
            .into_iter()
            .map(|event| event.id)
            .collect();
        self.all.push(One {
            pool: pool.clone(),
            schema: schema.clone(),
            seen,
            scheduled: before,
        });
        Ok(())
    }

    /// Returns the events published since the last call.
    pub(super) async fn published(&mut self) -> Result<Vec<Envelope>, sqlx::Error> {
        let mut published = Vec::new();
        for One {
            pool, schema, seen, ..
        } in &mut self.all
        {
            published.append(&mut published_since(pool, schema, seen).await?);
        }
        Ok(published)
    }

    /// Records events that were scheduled since the last call. Each is due after the same remaining
    /// time as by the server's clock.
    pub(super) async fn look_for_scheduled(&mut self, now: Duration) -> Result<(), sqlx::Error> {
        for (at, one) in self.all.iter_mut().enumerate() {
            for event in scheduled(&one.pool, &one.schema).await? {
                if one.scheduled.insert(event.id) {
                    self.due.insert(
                        (now.saturating_add(event.due_in), at, event.number),
                        event.id,
                    );
                }
            }
        }
        Ok(())
    }

    /// Returns the due time of the next scheduled event.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.due.first_key_value().map(|((due, ..), _)| *due)
    }

    /// Publishes the scheduled events that are due at `now`, unless they were cancelled.
    pub(super) async fn publish_due(&mut self, now: Duration) -> Result<(), sqlx::Error> {
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, at, _), id) = entry.remove_entry();
            move_scheduled(&self.all[at].pool, &self.all[at].schema, id).await?;
        }
        Ok(())
    }
}
