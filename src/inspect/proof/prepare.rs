//! Inputs of a round: the snapshot of the database, the partitions, and the records.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::VerifyError;
use super::baseline::{Baseline, Read};
use super::entry::{CommittedEvent, NOWHERE, TopicRecord};
use super::identify::identify;
use super::places::{Place, Places};
use super::run::{Last, Rounds, Start, Verifier};
use super::selection::Selection;
use super::sorter::Sorter;
use crate::kafka::{
    ASK_TIMEOUT, Cluster, Incoming, Isolation, Part, PartEnd, PartitionExtent, Topic, TopicError,
    extents, offsets_at, read_parts,
};
use crate::postgres::begin_with;

/// Maximum time to wait for the end of a Kafka transaction. Longer than the limit of a relay's
/// transactions and the delay of their abort.
const TRANSACTION_PATIENCE: Duration = Duration::from_secs(90);

/// Input of a round.
pub(super) struct Round {
    pub(super) baseline: Baseline,
    pub(super) places: Places,
    parts: Vec<Part>,
    pub(super) read: Read,
}

/// Records that were read.
pub(super) struct Records {
    pub(super) records: Sorter<TopicRecord>,
    /// Number of records that are not events of an outbox.
    pub(super) foreign: u64,
    pub(super) ends: Vec<PartEnd>,
}

impl Round {
    /// Returns the time of the first event that waits.
    pub(super) fn first_waiting(&self) -> Option<DateTime<Utc>> {
        self.read.first_waiting
    }
}

/// State of the thread that reads.
struct Reading {
    records: Sorter<TopicRecord>,
    foreign: u64,
    error: Option<std::io::Error>,
}

impl Verifier {
    /// Takes the snapshot of the database, and queries the ends of the partitions after it.
    pub(super) async fn prepare(
        &self,
        rounds: &mut Rounds,
        start: Start,
    ) -> Result<Round, VerifyError> {
        let database = &self.database;
        let failed = |error| database.error(error);
        let mut tx = begin_with(
            &database.pool,
            "begin isolation level repeatable read read only",
        )
        .await
        .map_err(failed)?;
        // The table may be large, and the server sorts nothing.
        sqlx::raw_sql("set local statement_timeout = 0; set local jit = off")
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        let mut baseline = Baseline::read(&mut tx, database, &self.relay).await?;
        let names: Vec<String> = baseline
            .topics
            .iter()
            .map(|topic| topic.topic.clone())
            .collect();
        self.examine(&mut baseline, &names).await?;
        let extents = extents(&self.kafka, names, Isolation::Uncommitted).await?;
        let mut places = Places::new(std::mem::take(&mut baseline.topics), &extents);
        let parts = self.parts(&extents, &mut places, start, rounds).await?;
        let mut events = Sorter::new(&self.folder);
        if let Some(last) = &mut rounds.last {
            let open = std::mem::replace(&mut last.open, Sorter::new(&self.folder));
            for event in open.sorted()? {
                events.extend_open(&baseline, event?, last)?;
            }
        }
        let selection = match (&rounds.last, &rounds.since) {
            (Some(last), _) => Selection::Beyond(&last.position),
            (None, Some(since)) => Selection::Since(since),
            (None, None) => Selection::All,
        };
        let route = (&places, &self.rule);
        let read = baseline
            .events(&mut tx, database, selection, route, events)
            .await?;
        tx.commit().await.map_err(failed)?;
        Ok(Round {
            baseline,
            places,
            parts,
            read,
        })
    }

    /// Checks that this is the relay's cluster, and finds its compacted topics.
    async fn examine(&self, baseline: &mut Baseline, names: &[String]) -> Result<(), VerifyError> {
        let cluster = Cluster::ask(&self.kafka, names, ASK_TIMEOUT)
            .await
            .map_err(|error| TopicError::Unreachable(error.to_string()))?;
        if let (Some(theirs), Some(here)) = (&baseline.cluster, &cluster.id)
            && theirs != here
        {
            return Err(VerifyError::Refused(format!(
                "relay `{}` publishes to Kafka cluster {theirs}, and {} is cluster {here}\n  \
                 -> set --brokers to the brokers of the relay",
                self.relay, self.kafka.brokers
            )));
        }
        for topic in &mut baseline.topics {
            if let Some(Topic::There { settings, .. }) = cluster.topics.get(&topic.topic) {
                let policy = settings.get("cleanup.policy");
                topic.is_compacted = policy.is_some_and(|policy| policy.contains("compact"));
            }
        }
        Ok(())
    }

    /// Returns the parts of the partitions to read.
    async fn parts(
        &self,
        extents: &[PartitionExtent],
        places: &mut Places,
        start: Start,
        rounds: &Rounds,
    ) -> Result<Vec<Part>, VerifyError> {
        let wanted: Vec<i64> = match (start, &rounds.last) {
            (Start::Time(time), _) => {
                let millis = time.timestamp_millis();
                offsets_at(&self.kafka, extents.to_vec(), millis).await?
            }
            (_, Some(last)) => extents
                .iter()
                .map(|extent| {
                    let key = (extent.partition.topic.clone(), extent.partition.number);
                    last.ends.get(&key).copied().unwrap_or(0)
                })
                .collect(),
            _ => vec![0; extents.len()],
        };
        let part = |((extent, wanted), place): ((&PartitionExtent, i64), &mut _)| {
            let place: &mut Place = place;
            place.is_trimmed = extent.low > wanted && !matches!(start, Start::Time(_));
            Part {
                partition: extent.partition.clone(),
                from: wanted.max(extent.low),
                to: extent.high,
            }
        };
        let parts = extents.iter().zip(wanted).zip(&mut places.list).map(part);
        Ok(parts.collect())
    }

    /// Reads the records into `records`.
    pub(super) async fn read(
        &self,
        round: &Round,
        records: Sorter<TopicRecord>,
    ) -> Result<Records, VerifyError> {
        let configured = Some(self.event_source.clone()).filter(|source| !source.is_empty());
        let sources: Vec<String> = [configured, round.baseline.event_source.clone()]
            .into_iter()
            .flatten()
            .collect();
        let places: HashMap<(Arc<str>, i32), u32> = (0..)
            .zip(&round.places.list)
            .map(|(number, place)| ((place.topic.clone(), place.partition), number))
            .collect();
        let reading = Reading {
            records,
            foreign: 0,
            error: None,
        };
        self.progress.begin(&round.parts);
        let progress = self.progress.clone();
        let each = move |reading: &mut Reading, mut record: Incoming| {
            progress.count();
            let key = (record.topic.clone(), record.partition);
            let place = places.get(&key).copied().unwrap_or(NOWHERE);
            match identify(&record, place, &sources) {
                // After an error, the rest is read without effect.
                Some(found) if reading.error.is_none() => {
                    reading.error = reading.records.push(found).err();
                }
                Some(_) => {}
                None => reading.foreign += 1,
            }
            record.take_buffers()
        };
        let parts = round.parts.clone();
        let (reading, ends) =
            read_parts(&self.kafka, parts, TRANSACTION_PATIENCE, reading, each).await?;
        match reading.error {
            Some(error) => Err(error.into()),
            None => Ok(Records {
                records: reading.records,
                foreign: reading.foreign,
                ends,
            }),
        }
    }
}

impl Sorter<CommittedEvent> {
    /// Adds an event that was parked in the last round, with its present state.
    fn extend_open(
        &mut self,
        baseline: &Baseline,
        event: CommittedEvent,
        last: &Last,
    ) -> std::io::Result<()> {
        if !last.position.covers(event.xid, event.seq) {
            // It is read from the table again.
            return Ok(());
        }
        let place = (event.xid, event.seq);
        let (state, repeats) = baseline
            .decisions
            .state(&baseline.position, place, event.aggregate);
        self.push(CommittedEvent {
            state,
            repeats,
            ..event
        })
    }
}
