//! One verification, and rounds that continue it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::AssertSqlSafe;
use tokio::time::Instant;
use uuid::Uuid;

use super::VerifyError;
use super::compare::{Compared, Inputs, Rules, compare};
use super::entry::{CommittedEvent, TopicRecord};
use super::horizon::Horizons;
use super::lookup::Lookup;
use super::missing::count_missing;
use super::order::{Recent, Writers, check_order};
use super::places::Places;
use super::prepare::{Records, Round};
use super::progress::ReadProgress;
use super::report::{Fault, Finding, Kind, Report};
use super::selection::{Since, earliest};
use super::sorter::Sorter;
use crate::inspect::Database;
use crate::kafka::{PartEnd, Settings};
use crate::relay::TopicRule;
use crate::relay::position::{Position, Snapshot};

/// Time before the verified range from which records are read: a record may have a time that is
/// earlier than that of its event if the clocks of brokers and database differ.
const SLACK: TimeDelta = TimeDelta::minutes(10);

/// Maximum number of topics that a refusal names.
pub(super) const TOPICS_NAMED_MAX: usize = 5;

/// Verifies the topics of one relay.
pub(crate) struct Verifier {
    pub(crate) database: Database,
    pub(crate) kafka: Settings,
    pub(crate) relay: String,
    /// Rule of the relay that gives the topics of missing events.
    pub(crate) rule: TopicRule,
    /// Event source in the configuration. Empty if it has none.
    pub(crate) event_source: String,
    pub(crate) writers: Writers,
    /// Folder of temporary files.
    pub(crate) folder: PathBuf,
    pub(crate) progress: Arc<ReadProgress>,
}

/// Rounds that continue a verification.
#[derive(Default)]
pub(crate) struct Rounds {
    pub(super) since: Option<Since>,
    /// Everything before it is verified.
    until: Option<Since>,
    pub(super) last: Option<Last>,
    /// No parked event occurred earlier. `None` if no event is parked.
    first_parked: Option<DateTime<Utc>>,
    recent: Recent,
}

/// State that one round leaves to the next.
pub(super) struct Last {
    pub(super) position: Position,
    /// The transactions that its snapshot has seen.
    visible: Snapshot,
    /// Parked events.
    pub(super) open: Sorter<CommittedEvent>,
    /// Records of events that are not settled.
    records: Sorter<TopicRecord>,
    pub(super) ends: HashMap<(Arc<str>, i32), i64>,
}

/// First offsets of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Beginning,
    Time(DateTime<Utc>),
    /// Where the last round has ended.
    Last,
}

impl Rounds {
    /// Creates rounds that verify events from this time on.
    pub(crate) fn since(since: Option<DateTime<Utc>>) -> Self {
        Self {
            since: since.map(|time| Since { time, seen: None }),
            ..Self::default()
        }
    }

    /// Continues after a round that has verified everything before its report's time.
    fn advance(&mut self, report: &Report) {
        let Some(last) = &self.last else { return };
        let first = earliest(self.first_parked, Some(report.verified_until));
        self.until = first.map(|time| Since {
            time,
            seen: Some(last.visible.clone()),
        });
    }

    /// Starts again where the last successful round has ended.
    fn restart(&mut self) {
        (self.last, self.recent) = (None, Recent::default());
        if let Some(until) = &self.until {
            self.since = Some(until.clone());
        }
    }
}

impl Verifier {
    /// Verifies everything that the earlier rounds have not verified.
    ///
    /// After an error, or if a transaction in a partition does not end, the next round starts again
    /// from the first event that is not verified: the first one that waited or was parked, and the
    /// events of transactions that had not ended.
    ///
    /// # Errors
    ///
    /// Returns [`VerifyError`].
    pub(crate) async fn next(&self, rounds: &mut Rounds) -> Result<Report, VerifyError> {
        let report = self.attempt(rounds).await;
        match &report {
            Ok(report) if report.tally.hidden == 0 => rounds.advance(report),
            _ => rounds.restart(),
        }
        report
    }

    async fn attempt(&self, rounds: &mut Rounds) -> Result<Report, VerifyError> {
        let start = match (&rounds.last, &rounds.since) {
            (Some(_), _) => Start::Last,
            (None, Some(since)) => Start::Time(since.time - SLACK),
            (None, None) => Start::Beginning,
        };
        let report = self.round(rounds, start).await?;
        if matches!(start, Start::Time(_)) && report.tally.lost > 0 {
            // The record of an event with a time of its own may be before the start.
            (rounds.last, rounds.recent) = (None, Recent::default());
            return self.round(rounds, Start::Beginning).await;
        }
        Ok(report)
    }

    async fn round(&self, rounds: &mut Rounds, start: Start) -> Result<Report, VerifyError> {
        let started = Instant::now();
        let mut round = self.prepare(rounds, start).await?;
        let mut carried = rounds.last.take();
        let mut records = Sorter::new(&self.folder);
        if let Some(last) = &mut carried {
            let before = std::mem::replace(&mut last.records, Sorter::new(&self.folder));
            for record in before.sorted()? {
                records.push(record?)?;
            }
        }
        let records = self.read(&round, records).await?;
        round.places.hide(&records.ends);
        let (ends, settled) = (
            records.ends.clone(),
            carried.as_ref().map(|last| &last.position),
        );
        let mut compared = self.compare(&mut round, records, rounds)?;
        rounds.first_parked = match compared.tally.parked {
            0 => None,
            _ => earliest(rounds.first_parked, round.read.first_parked),
        };
        let lookup = Lookup {
            database: &self.database,
            baseline: &round.baseline,
            since: rounds.since.as_ref(),
            settled,
            exactly_once: round.baseline.exactly_once,
        };
        let unknown = std::mem::replace(&mut compared.unknown, Sorter::new(&self.folder));
        lookup.resolve(&mut compared, unknown, &self.folder).await?;
        let faults = std::mem::take(&mut compared.findings).into_faults();
        let report = Report {
            relay: self.relay.clone(),
            snapshot_at: round.baseline.now,
            verified_until: round.first_waiting().unwrap_or(round.baseline.now),
            since: rounds.since.as_ref().map(|since| since.time),
            matches: compared.tally.wrong() == 0,
            findings: self.name(faults, &round.places).await?,
            gaps: round.places.gaps(),
            tally: compared.tally,
            seconds: started.elapsed().as_secs_f64(),
        };
        rounds.last = Some(Last {
            position: round.baseline.position,
            visible: round.baseline.visible,
            open: compared.open,
            records: compared.open_records,
            ends: ends_of(carried, ends),
        });
        Ok(report)
    }

    /// Compares events and records, and checks the order.
    fn compare(
        &self,
        round: &mut Round,
        records: Records,
        rounds: &mut Rounds,
    ) -> Result<Compared, VerifyError> {
        let mut horizons = Horizons::of(round.places.trimmed());
        let exactly_once = round.baseline.exactly_once;
        let rules = Rules {
            exactly_once,
            folder: &self.folder,
        };
        let inputs = Inputs {
            events: std::mem::replace(&mut round.read.events, Sorter::new(&self.folder)),
            records: records.records,
        };
        let mut compared = compare(inputs, &rules, &mut horizons)?;
        compared.tally.foreign += records.foreign;
        compared.tally.scheduled = round.baseline.scheduled;
        let writers = if exactly_once {
            self.writers
        } else {
            Writers::AtLeastOnce
        };
        let delivered = std::mem::replace(&mut compared.delivered, Sorter::new(&self.folder));
        check_order(
            delivered.sorted()?,
            writers,
            &mut rounds.recent,
            &mut compared.tally,
            &mut compared.findings,
        )?;
        let unplaced = count_missing(&mut compared, &round.places, &horizons, &self.folder)?;
        // A lost event is reported in any case.
        if unplaced > 0 && compared.tally.lost == 0 {
            self.require_used_topics(round)?;
        }
        Ok(compared)
    }

    /// Refuses a configuration that gives published events topics to which the relay has never
    /// published. Whether a gap explains a missing event depends on its topic.
    fn require_used_topics(&self, round: &Round) -> Result<(), VerifyError> {
        let (unused, places) = (&round.read.unused, &round.places);
        let used: Vec<&str> = places.used().take(TOPICS_NAMED_MAX).collect();
        if unused.is_empty() || used.is_empty() {
            return Ok(());
        }
        let list = |names: Vec<&str>| names.join(", ");
        Err(VerifyError::Refused(format!(
            "events of relay `{}` are missing, and this configuration expects published events in \
             topics to which the relay has not published ({}; the relay has published to {})\n  \
             -> set routing.topic, routing.regex and routing.replacement as the relay has them",
            self.relay,
            list(unused.iter().map(String::as_str).collect()),
            list(used),
        )))
    }

    /// Adds the names of events and partitions to the findings.
    async fn name(&self, faults: Vec<Fault>, places: &Places) -> Result<Vec<Finding>, VerifyError> {
        let ids: Vec<Uuid> = faults
            .iter()
            .map(|fault| Uuid::from_bytes(fault.id))
            .collect();
        let sql = self.database.sql(
            "select id, aggregatetype || '/' || aggregateid, type
             from \"{schema}\".outbox where id = any ($1)",
        );
        let rows: Vec<(Uuid, String, String)> = match ids.is_empty() {
            true => Vec::new(),
            false => sqlx::query_as(AssertSqlSafe(sql))
                .bind(ids)
                .fetch_all(&self.database.pool)
                .await
                .map_err(|error| self.database.error(error))?,
        };
        let rows: HashMap<Uuid, (String, String)> = rows
            .into_iter()
            .map(|(id, aggregate, kind)| (id, (aggregate, kind)))
            .collect();
        let finding = |fault: Fault| {
            let event = Uuid::from_bytes(fault.id);
            let place = fault.place.and_then(|(place, _)| places.get(place));
            let (aggregate, event_type) = rows.get(&event).cloned().unzip();
            Finding {
                kind: fault.kind,
                event,
                aggregate,
                event_type,
                topic: place.map(|place| place.topic.clone()),
                partition: place.map(|place| place.partition),
                offset: fault
                    .place
                    .map(|(_, offset)| offset)
                    .filter(|offset| *offset >= 0),
                copies: (fault.kind == Kind::Repeated).then_some(fault.copies),
                behind: fault.other.map(Uuid::from_bytes),
            }
        };
        Ok(faults.into_iter().map(finding).collect())
    }
}

/// Returns the ends of all partitions. A partition that was not read keeps its end.
fn ends_of(last: Option<Last>, ends: Vec<PartEnd>) -> HashMap<(Arc<str>, i32), i64> {
    let mut all = last.map(|last| last.ends).unwrap_or_default();
    for end in ends {
        all.insert((end.partition.topic, end.partition.number), end.offset);
    }
    all
}
