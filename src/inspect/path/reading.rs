//! Reads of one search. A place that cannot be read is listed, and the search continues.

use std::collections::HashSet;

use uuid::Uuid;

use super::database;
use super::records::{self, Records, Wanted};
use super::{Cause, Cluster, Effect, EventName, NamedDatabase, Places, Step, StepKind};
use crate::event::headers::CAUSATION_ID;
use crate::inspect::{
    InspectError,
    events::{self, Range, Search, StoredEvent},
};
use crate::saga::Sagas;

/// Limits of the causation tree.
const CAUSES_MAX: usize = 20;
const EFFECTS_DEPTH_MAX: usize = 10;
const EFFECTS_MAX: usize = 200;

/// State of a search.
pub(super) struct Reading<'p> {
    pub(super) places: &'p Places,
    pub(super) unread: Vec<String>,
    pub(super) steps: Vec<Step>,
}

impl Reading<'_> {
    /// Returns the value, or lists the place as unread.
    fn read<T: Default>(&mut self, place: &NamedDatabase, result: Result<T, InspectError>) -> T {
        result.unwrap_or_else(|error| {
            let text = format!(
                "database {}: {}",
                place.name,
                crate::postgres::errors::with_causes(&error)
            );
            if !self.unread.contains(&text) {
                self.unread.push(text);
            }
            T::default()
        })
    }

    /// Returns the event's row and the name of its database. Adds the time of a scheduled event.
    pub(super) async fn outbox(&mut self, id: Uuid) -> (Option<StoredEvent>, Option<String>) {
        for place in &self.places.databases {
            let found =
                events::search(&place.database, &Search::Id(id), Range::new(i64::MAX, 1)).await;
            let found = self.read(place, found.map(|found| found.events));
            if let Some(event) = found.into_iter().next() {
                return (Some(event), Some(place.name.clone()));
            }
            let due = database::due_at(&place.database, id).await;
            if let Some((_, due_at)) = self.read(place, due) {
                self.steps.push(Step {
                    at: Some(due_at),
                    database: Some(place.name.clone()),
                    kind: StepKind::Scheduled { due_at },
                });
            }
        }
        (None, None)
    }

    /// Searches Kafka. Without a row, the time in the id and all topics of the relays are used.
    pub(super) async fn records(&mut self, id: Uuid, event: Option<&StoredEvent>) -> Records {
        let (kafka, time_max) = match &self.places.kafka {
            Cluster::Searched { settings, time_max } => (settings, *time_max),
            Cluster::Unread(reason) => {
                return Records {
                    unread: vec![format!("Kafka: {reason}")],
                    ..Records::default()
                };
            }
        };
        let time_of_id = id
            .get_timestamp()
            .and_then(|time| i64::try_from(time.to_unix().0).ok())
            .map(|seconds| seconds.saturating_mul(1_000));
        let occurred = event
            .and_then(|event| event.occurred_at)
            .map(|time| time.timestamp_millis());
        let Some(since) = occurred.or(time_of_id) else {
            return Records {
                unread: vec![
                    "Kafka: neither a row nor the id contains the time of the event".into(),
                ],
                ..Records::default()
            };
        };
        let mut topics = Vec::new();
        for place in &self.places.databases {
            let read = database::topics(&place.database).await;
            topics.extend(self.read(place, read));
        }
        // Routing may rename topics, so the topics of the relays are searched, the likely ones
        // first.
        if let Some(event) = event {
            let likely = event.topic.as_ref().unwrap_or(&event.aggregate_type);
            topics.sort_by_key(|topic| topic != likely);
            if topics.contains(likely) {
                topics.truncate(1);
            }
        }
        topics.dedup();
        let wanted = Wanted {
            id: id.to_string(),
            key: event.map(|event| event.aggregate_id.clone()),
            since,
            topics,
        };
        records::find(kafka, &wanted, time_max).await
    }

    pub(super) async fn sources(&mut self) -> Vec<String> {
        let mut sources = Vec::new();
        for place in &self.places.databases {
            let read = database::sources(&place.database).await;
            sources.extend(self.read(place, read));
        }
        sources
    }

    /// Adds a step for each transaction that handled the event, and returns them.
    pub(super) async fn handled(
        &mut self,
        sources: &[String],
        id: &str,
    ) -> Vec<(usize, database::Handled)> {
        let all = self.handlers(sources, id).await;
        self.steps.extend(all.iter().map(|(at, handled)| Step {
            at: Some(handled.at),
            database: Some(self.places.databases[*at].name.clone()),
            kind: StepKind::Handled {
                subscriber: handled.subscriber.clone(),
            },
        }));
        all
    }

    pub(super) async fn parked(&mut self, id: &str) {
        for place in &self.places.databases {
            let read = database::parked(&place.database, id).await;
            let steps = self.read(place, read).into_iter().map(|step| Step {
                database: Some(place.name.clone()),
                ..step
            });
            self.steps.extend(steps);
        }
    }

    /// Adds the saga with this correlation id.
    pub(super) async fn saga(&mut self, correlation: &str) {
        let Ok(id) = correlation.parse::<Uuid>() else {
            return;
        };
        for place in &self.places.databases {
            let Ok(sagas) = Sagas::new(place.database.pool.clone()).schema(&place.database.schema)
            else {
                continue;
            };
            let read = sagas
                .get(id)
                .await
                .map_err(|error| place.database.error(error));
            if let Some(saga) = self.read(place, read) {
                self.steps.push(Step {
                    at: Some(saga.updated_at),
                    database: Some(place.name.clone()),
                    kind: StepKind::Saga {
                        id,
                        name: saga.name,
                        status: saga.status.word().to_owned(),
                        at_step: saga.step,
                    },
                });
            }
        }
    }

    /// Returns the events that led to this one, as far as their rows exist.
    pub(super) async fn causes(&mut self, event: &StoredEvent) -> Vec<Cause> {
        let mut causes = Vec::new();
        let mut next = event.header(CAUSATION_ID).map(str::to_owned);
        while let Some(id) = next.take().and_then(|id| id.parse::<Uuid>().ok()) {
            for place in &self.places.databases {
                let found =
                    events::search(&place.database, &Search::Id(id), Range::new(i64::MAX, 1)).await;
                let found = self.read(place, found.map(|found| found.events));
                if let Some(cause) = found.into_iter().next() {
                    next = cause.header(CAUSATION_ID).map(str::to_owned);
                    causes.push(Cause {
                        event: EventName {
                            id: cause.id.to_string(),
                            event_type: cause.event_type,
                            aggregate_type: cause.aggregate_type,
                            aggregate_id: cause.aggregate_id,
                        },
                        database: place.name.clone(),
                    });
                    break;
                }
            }
            if causes.len() >= CAUSES_MAX {
                break;
            }
        }
        causes.reverse();
        causes
    }

    /// Returns the events that these handlers published, with the events that follow from them.
    pub(super) async fn effects(
        &mut self,
        sources: &[String],
        id: &str,
        handled: Vec<(usize, database::Handled)>,
        seen: &mut HashSet<String>,
        depth: usize,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        if depth >= EFFECTS_DEPTH_MAX {
            return effects;
        }
        for (at, handled) in handled {
            let place = &self.places.databases[at];
            let limit = EFFECTS_MAX.saturating_sub(seen.len());
            let read = database::effects(
                &place.database,
                &handled,
                id,
                i64::try_from(limit).unwrap_or(0),
            )
            .await;
            for event in self.read(place, read) {
                if !seen.insert(event.id.clone()) {
                    continue;
                }
                let next = self.handlers(sources, &event.id).await;
                let handled_by = next.iter().map(|(_, next)| next.subscriber.clone());
                let handled_by = handled_by.collect();
                let further =
                    Box::pin(self.effects(sources, &event.id, next, seen, depth + 1)).await;
                effects.push(Effect {
                    event,
                    database: place.name.clone(),
                    published_by: handled.subscriber.clone(),
                    handled_by,
                    effects: further,
                });
            }
        }
        effects
    }

    /// Returns the transactions that handled an event, each with the index of its database.
    pub(super) async fn handlers(
        &mut self,
        sources: &[String],
        id: &str,
    ) -> Vec<(usize, database::Handled)> {
        let mut all = Vec::new();
        for (at, place) in self.places.databases.iter().enumerate() {
            let read = database::handled(&place.database, sources, id).await;
            all.extend(self.read(place, read).into_iter().map(|one| (at, one)));
        }
        all
    }
}
