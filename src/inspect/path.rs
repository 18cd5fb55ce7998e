//! Path of one event: its insertion, its record, its effects, and the events that it caused.
//!
//! An event leaves traces in several places. Each place is read on its own, and a place that cannot
//! be read is listed rather than treated as empty:
//!
//! ```text
//! outbox, scheduled   the insertion, and the state in each relay        events.rs
//! Kafka               the record, retry topics, dead letters            records.rs
//! inbox               the subscribers that handled it                   database.rs
//! subscriber_parked   the subscribers in which it waits                 database.rs
//! saga                the saga whose id is the correlation id
//! ```
//!
//! The events that a handler published are in its transaction, so their rows have the transaction
//! id of the inbox row. This finds them by an index, whereas a search by `causationid` would read
//! the whole outbox.

mod aggregate;
mod database;
mod reading;
mod records;
mod step;

use std::collections::HashSet;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use super::Database;
use super::events::StoredEvent;
use crate::event::headers::CORRELATION_ID;
use crate::kafka::Settings;
pub(crate) use aggregate::{AggregateRecord, AggregateRecords, aggregate_records};
use reading::Reading;
pub(crate) use step::{Step, StepKind, moment};

/// A database, with the name that is shown for it.
#[derive(Clone, Debug)]
pub(crate) struct NamedDatabase {
    pub(crate) name: String,
    pub(crate) database: Database,
}

/// The places that are read.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) databases: Vec<NamedDatabase>,
    pub(crate) kafka: Cluster,
}

/// The cluster of a search.
#[derive(Clone, Debug)]
pub(crate) enum Cluster {
    /// Its topics are searched, together for at most `time_max`.
    Searched {
        settings: Settings,
        time_max: Duration,
    },
    /// It is not searched, with the reason.
    Unread(&'static str),
}

/// Reason for [`Cluster::Unread`] without brokers.
pub(crate) const NO_BROKERS: &str = "no brokers are configured (--brokers)";

/// Identity of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct EventName {
    pub(crate) id: String,
    #[serde(rename = "type")]
    pub(crate) event_type: String,
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
}

/// Path of an event.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Path {
    pub(crate) id: Uuid,
    /// `None` if no database contains its row.
    pub(crate) event: Option<StoredEvent>,
    /// What happened, in the order of time.
    pub(crate) steps: Vec<Step>,
    /// The events that led to it, the first one first.
    pub(crate) causes: Vec<Cause>,
    /// The events that its handlers published.
    pub(crate) effects: Vec<Effect>,
    /// Places that could not be read, each with the reason.
    pub(crate) unread: Vec<String>,
}

/// An event that led to another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cause {
    #[serde(flatten)]
    pub(crate) event: EventName,
    pub(crate) database: String,
}

/// An event that a handler published.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Effect {
    #[serde(flatten)]
    pub(crate) event: EventName,
    /// The database whose outbox contains it.
    pub(crate) database: String,
    /// The subscriber that published it.
    pub(crate) published_by: String,
    /// The subscribers that handled it.
    pub(crate) handled_by: Vec<String>,
    pub(crate) effects: Vec<Effect>,
}

/// Follows an event through all places.
pub(crate) async fn path(places: &Places, id: Uuid) -> Path {
    let mut reading = Reading {
        places,
        unread: Vec::new(),
        steps: Vec::new(),
    };
    let (event, home) = reading.outbox(id).await;
    let name = id.to_string();
    let records = reading.records(id, event.as_ref()).await;
    let mut sources = reading.sources().await;
    sources.extend(records.source);
    reading.steps.extend(records.steps);
    reading.unread.extend(records.unread);
    let handled = reading.handled(&sources, &name).await;
    reading.parked(&name).await;
    if let Some(correlation) = event
        .as_ref()
        .and_then(|event| event.header(CORRELATION_ID))
    {
        reading.saga(correlation).await;
    }
    let causes = match &event {
        Some(event) => reading.causes(event).await,
        None => Vec::new(),
    };
    let mut seen = HashSet::from([name.clone()]);
    let effects = reading
        .effects(&sources, &name, handled, &mut seen, 0)
        .await;
    let Reading {
        mut steps, unread, ..
    } = reading;
    if let Some(event) = &event {
        steps.extend(stored_steps(event, home));
    }
    // The timestamp of a record has milliseconds, that of a row microseconds.
    let millis = |step: &Step| step.at.map(|at| at.timestamp_millis());
    steps.sort_by_key(|step| (millis(step), step.kind.rank()));
    Path {
        id,
        event,
        steps,
        causes,
        effects,
        unread,
    }
}

/// The steps that the outbox's row and its relays record.
fn stored_steps(event: &StoredEvent, home: Option<String>) -> Vec<Step> {
    let step = |at, kind| Step {
        at,
        database: home.clone(),
        kind,
    };
    let mut steps = vec![step(
        event.occurred_at,
        StepKind::Inserted {
            seq: event.seq,
            xid: event.xid.clone(),
        },
    )];
    if event.committed_at.is_some() {
        steps.push(step(event.committed_at, StepKind::Committed));
    }
    // A relay does not store the time at which it published an event. These steps follow the
    // commit.
    let after = event.committed_at.or(event.occurred_at);
    for at_relay in &event.relays {
        let relay = at_relay.relay.clone();
        steps.push(match &at_relay.parked {
            Some(parked) => step(
                Some(parked.since),
                StepKind::Parked {
                    relay,
                    reason: parked.reason.clone(),
                    tries: parked.tries,
                    action: parked.action.clone(),
                },
            ),
            None if at_relay.published => step(after, StepKind::Published { relay }),
            None => step(after, StepKind::Waits { relay }),
        });
    }
    steps
}
