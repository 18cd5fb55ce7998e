//! State of the relay and the outbox in one snapshot of the database.

use std::borrow::Cow;
use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row as _, types::Json};

use super::decisions::{Decisions, PositionMove, Range};
use super::entry::{CommittedEvent, NOWHERE, State, UNKNOWN_TIME};
use super::places::{Places, RelayTopic};
use super::run::TOPICS_NAMED_MAX;
use super::selection::{Selection, earliest};
use super::sorter::Sorter;
use super::{VerifyError, aggregate_hash};
use crate::inspect::{Database, InspectError};
use crate::relay::TopicRule;
use crate::relay::position::{Change, Identity, Position, Snapshot};
use crate::relay::startup::server::identity;

/// Age in transactions from which commit times are not used. A shorter id may refer to another
/// transaction there.
const COMMIT_TIMES_MAX: i64 = 1_500_000_000;

/// State of the relay in one snapshot of the database.
pub(crate) struct Baseline {
    pub(crate) now: DateTime<Utc>,
    /// The transactions that the snapshot sees.
    pub(crate) visible: Snapshot,
    pub(crate) position: Position,
    pub(crate) decisions: Decisions,
    pub(crate) exactly_once: bool,
    /// `ce_source` of the relay's records.
    pub(crate) event_source: Option<String>,
    /// Id of the Kafka cluster that it publishes to.
    pub(crate) cluster: Option<String>,
    pub(crate) topics: Vec<RelayTopic>,
    pub(crate) scheduled: u64,
    has_commit_times: bool,
}

/// Result of reading the events.
pub(crate) struct Read {
    pub(crate) events: Sorter<CommittedEvent>,
    /// The time of the first event that waits, if one does.
    pub(crate) first_waiting: Option<DateTime<Utc>>,
    /// The time of the first parked event, if there is one.
    pub(crate) first_parked: Option<DateTime<Utc>>,
    /// Topics of published events to which the relay has not published, according to the rule.
    pub(crate) unused: BTreeSet<String>,
}

impl Baseline {
    /// Reads the state of the relay. `session` is in a transaction with one snapshot.
    ///
    /// # Errors
    ///
    /// Returns a refusal if this relay cannot be verified, or the error of a query.
    pub(crate) async fn read(
        session: &mut PgConnection,
        database: &Database,
        relay: &str,
    ) -> Result<Self, VerifyError> {
        let here = identity(session)
            .await
            .map_err(|error| database.error(error))?;
        let row = relay_row(session, database, relay)
            .await
            .map_err(|error| database.error(error))?
            .ok_or_else(|| unknown_relay(database, relay))?;
        let read = || -> Result<_, sqlx::Error> {
            let identity: Option<Json<Identity>> = row.try_get("identity")?;
            let position: Option<Json<Position>> = row.try_get("position")?;
            Ok((
                identity,
                position,
                row.try_get::<Option<String>, _>("table_name")?,
            ))
        };
        let (theirs, position, table) = read().map_err(|error| database.error(error))?;
        if let Some(table) = table {
            return Err(foreign_table(relay, &table));
        }
        if theirs.is_some_and(|Json(theirs)| theirs.change(&here) == Change::Database) {
            return Err(VerifyError::Refused(format!(
                "the position of relay `{relay}` belongs to another database, so it does not show \
                 which events of this one are published\n  -> start the relay, which names the \
                 remedy, and verify again"
            )));
        }
        let read = async {
            let visible: &str = row.try_get("visible")?;
            Ok::<_, sqlx::Error>(Self {
                now: row.try_get("now")?,
                visible: visible
                    .parse()
                    .map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
                position: position.map_or_else(Position::start, |Json(position)| position),
                decisions: decisions(session, database, relay, &here).await?,
                exactly_once: row.try_get::<Option<String>, _>("delivery")?.as_deref()
                    != Some("at-least-once"),
                event_source: row.try_get("event_source")?,
                cluster: row.try_get("kafka_cluster_id")?,
                topics: topics(session, database, relay).await?,
                scheduled: row.try_get::<i64, _>("scheduled")?.cast_unsigned(),
                has_commit_times: row.try_get("has_commit_times")?,
            })
        };
        read.await.map_err(|error| database.error(error).into())
    }

    /// Reads the selected events with their states.
    ///
    /// # Errors
    ///
    /// Returns the error of the query, or of a temporary file.
    pub(crate) async fn events(
        &self,
        session: &mut PgConnection,
        database: &Database,
        selection: Selection<'_>,
        (places, rule): (&Places, &TopicRule),
        events: Sorter<CommittedEvent>,
    ) -> Result<Read, VerifyError> {
        let sql = self.statement(database, selection);
        let mut read = Read {
            events,
            first_waiting: None,
            first_parked: None,
            unused: BTreeSet::new(),
        };
        let mut rows = sqlx::query(AssertSqlSafe(sql))
            .bind(selection.since())
            .fetch(session);
        while let Some(row) = rows
            .try_next()
            .await
            .map_err(|error| database.error(error))?
        {
            let topic = topic_of(&row, rule).map_err(|error| database.error(error))?;
            let event = self.event(&row, places, &topic);
            let (event, time) = event.map_err(|error| database.error(error))?;
            let is_settled = matches!(selection, Selection::Beyond(settled)
                if settled.covers(event.xid, event.seq));
            if is_settled {
                continue;
            }
            let first = match event.state {
                State::Waiting => Some(&mut read.first_waiting),
                State::Parked => Some(&mut read.first_parked),
                _ => None,
            };
            if let Some(first) = first {
                *first = earliest(*first, Some(time));
            }
            if event.state == State::Published
                && !places.is_used(&topic)
                && read.unused.len() < TOPICS_NAMED_MAX
            {
                read.unused.insert(topic.into_owned());
            }
            read.events.push(event)?;
        }
        Ok(read)
    }

    fn statement(&self, database: &Database, selection: Selection<'_>) -> String {
        let committed = match self.has_commit_times {
            true => format!(
                "case when xid::text::bigint > pg_snapshot_xmax(pg_current_snapshot())::text\
                 ::bigint - {COMMIT_TIMES_MAX} then
                 (extract(epoch from pg_xact_commit_timestamp(xid::xid)) * 1000000)::bigint end"
            ),
            false => "null::bigint".into(),
        };
        format!(
            "select id, seq, xid::text::bigint as xid, aggregatetype, aggregateid, type, topic,
                 {committed} as committed,
                 least(greatest(occurred_at, to_timestamp(0)), now()) as occurred_at
             from \"{}\".outbox where {}",
            database.schema,
            selection.condition()
        )
    }

    /// Returns an event and the time at which it occurred.
    fn event(
        &self,
        row: &PgRow,
        places: &Places,
        topic: &str,
    ) -> Result<(CommittedEvent, DateTime<Utc>), sqlx::Error> {
        let (kind, key): (&str, &str) = (row.try_get(3)?, row.try_get(4)?);
        let xid = row.try_get::<i64, _>(2)?.cast_unsigned();
        let (seq, aggregate) = (row.try_get(1)?, aggregate_hash(kind, key));
        let (state, repeats) = self.decisions.state(&self.position, (xid, seq), aggregate);
        let (place, other_relays) = places.of_key(topic, key);
        let event = CommittedEvent {
            id: row.try_get::<uuid::Uuid, _>(0)?.into_bytes(),
            seq,
            xid,
            aggregate,
            committed: row.try_get::<Option<i64>, _>(7)?.unwrap_or(UNKNOWN_TIME),
            place,
            state,
            repeats: repeats.saturating_add(other_relays),
        };
        debug_assert!(place == NOWHERE || places.get(place).is_some());
        Ok((event, row.try_get(8)?))
    }
}

/// Returns the topic of an event: its own, or the one that the rule gives.
fn topic_of<'r>(row: &'r PgRow, rule: &TopicRule) -> Result<Cow<'r, str>, sqlx::Error> {
    Ok(match row.try_get::<Option<&str>, _>(6)? {
        Some(topic) => topic.into(),
        None => rule.topic(row.try_get(3)?, row.try_get(5)?).into(),
    })
}

async fn relay_row(
    session: &mut PgConnection,
    database: &Database,
    relay: &str,
) -> Result<Option<PgRow>, sqlx::Error> {
    let sql = database.sql(
        "select now() as now, pg_current_snapshot()::text as visible, identity, position, delivery, event_source, kafka_cluster_id,
             table_name, current_setting('track_commit_timestamp')::boolean as has_commit_times,
             (select count(*) from \"{schema}\".scheduled) as scheduled
         from \"{schema}\".relay where name = $1",
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(relay)
        .fetch_optional(session)
        .await
}

async fn topics(
    session: &mut PgConnection,
    database: &Database,
    relay: &str,
) -> Result<Vec<RelayTopic>, sqlx::Error> {
    let sql = database.sql(
        "select topic, partitions,
             (select count(*) from \"{schema}\".relay_topic o
              where o.topic = t.topic and o.relay <> t.relay) as others
         from \"{schema}\".relay_topic t where relay = $1 order by topic",
    );
    let rows: Vec<(String, i32, i64)> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(relay)
        .fetch_all(session)
        .await?;
    let topic = |(topic, partitions, others)| RelayTopic {
        topic,
        partitions,
        other_relays: u8::try_from(others).unwrap_or(u8::MAX),
        is_compacted: false,
    };
    Ok(rows.into_iter().map(topic).collect())
}

/// Reads parked events and the decisions of operators.
async fn decisions(
    session: &mut PgConnection,
    database: &Database,
    relay: &str,
    here: &Identity,
) -> Result<Decisions, sqlx::Error> {
    let mut decisions = Decisions::default();
    let sql = database.sql(
        "select 'park' as kind, seq, to_seq, aggregatetype, aggregateid,
             null::jsonb as before, null::jsonb as after, null::jsonb as identity,
             null::text as visible
         from \"{schema}\".parked where relay = $1
         union all
         select kind, seq, to_seq, aggregatetype, aggregateid, before, after, identity,
             visible::text
         from \"{schema}\".relay_decision where relay = $1",
    );
    let mut rows = sqlx::query(AssertSqlSafe(sql)).bind(relay).fetch(session);
    while let Some(row) = rows.try_next().await? {
        let kind: &str = row.try_get("kind")?;
        if kind == "move" || kind == "forget" {
            decisions.moves.extend(position_move(&row, here)?);
            continue;
        }
        let from: i64 = row.try_get("seq")?;
        let range = match row.try_get::<Option<i64>, _>("to_seq")? {
            Some(to) => Some(Range {
                aggregate: aggregate_hash(
                    row.try_get("aggregatetype")?,
                    row.try_get("aggregateid")?,
                ),
                from,
                to,
            }),
            None => None,
        };
        let (events, ranges) = match kind {
            "park" => (&mut decisions.parked, &mut decisions.parked_ranges),
            "discard" => (&mut decisions.discarded, &mut decisions.discarded_ranges),
            _ => {
                decisions.skipped.push(from);
                continue;
            }
        };
        match range {
            Some(range) => ranges.push(range),
            None => events.push(from),
        }
    }
    decisions.parked.sort_unstable();
    decisions.discarded.sort_unstable();
    decisions.skipped.sort_unstable();
    Ok(decisions)
}

/// Returns a move, or `None` if its snapshot cannot be read.
fn position_move(row: &PgRow, here: &Identity) -> Result<Option<PositionMove>, sqlx::Error> {
    let position = |column| {
        let position: Option<Json<Position>> = row.try_get(column)?;
        Ok::<_, sqlx::Error>(position.map_or_else(Position::start, |Json(position)| position))
    };
    let identity: Option<Json<Identity>> = row.try_get("identity")?;
    let is_here = identity.is_none_or(|Json(theirs)| theirs.change(here) != Change::Database);
    let visible: Option<&str> = row.try_get("visible")?;
    let Some(visible) = visible.and_then(|text| text.parse::<Snapshot>().ok()) else {
        return Ok(None);
    };
    Ok(Some(PositionMove {
        before: match is_here {
            true => Some(position("before")?),
            false => None,
        },
        after: position("after")?,
        visible,
    }))
}

fn unknown_relay(database: &Database, relay: &str) -> VerifyError {
    VerifyError::Refused(format!(
        "relay `{relay}` has not run on schema {} of this database\n  -> name another one with \
         --name (`tidings relay list` shows them)",
        database.schema
    ))
}

fn foreign_table(relay: &str, table: &str) -> VerifyError {
    VerifyError::Refused(format!(
        "relay `{relay}` reads the Debezium table {table}, whose rows other programs delete, so \
         the committed events cannot be read again\n  -> verify a relay of Tidings' own outbox"
    ))
}

impl From<InspectError> for VerifyError {
    fn from(error: InspectError) -> Self {
        Self::Database(error)
    }
}
