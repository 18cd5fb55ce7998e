//! Moves scheduled events to the outbox when they are due. The leader does, beside its work.
//!
//! ```text
//! look: when is the first one due? ──later, or none──▶ sleep until then, a second at most
//!   ▲                │ now
//!   └──────── move a batch: delete there, insert here, one statement
//! ```
//!
//! Each event is moved once, whoever moves it and whatever dies: the row is deleted and inserted by one transaction. So no epoch is checked, and
//! leaders of several relays of one database may do it at the same time; a lock lets one of them, so that events keep the order of their times.
//! From then on it is an event of the outbox, published as the relay's delivery says.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};

use super::{
    RelayOptions,
    error::{Interruption, Meaning},
    ledger::{connect, within},
    observe::{Observer, Part, Reason},
};
use crate::{
    failpoint::{self, Step},
    outbox::COLUMNS,
};

/// Events moved at once: the transaction is short, and what else is written gets its turn.
const BATCH: i64 = 500;

/// Longest sleep between two looks, so that an event is not late that was scheduled meanwhile. A look reads the first entry of an index.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// While the leader of another relay moves, or what is due is being cancelled.
const OTHERS_MOVE: Duration = Duration::from_millis(50);

/// Before it is tried again after an error that passes.
const AGAIN: Duration = Duration::from_secs(1);

/// How [`COLUMNS`] of the outbox follow from a scheduled event. It happened when it was due, unless its publisher said otherwise.
const VALUES: &str = "id, aggregatetype, aggregateid, type, version, payload, payload_bytes, headers, coalesce(occurred_at, due_at), topic";

/// Moves events for as long as the future is polled, or until a person is needed.
pub(super) async fn run(options: &RelayOptions, observer: &Observer) -> Interruption {
    // A Debezium table is somebody else's, and nothing here writes to it.
    if options.debezium.is_some() {
        warn_of_waiting(options).await;
        std::future::pending::<()>().await;
    }
    let mut standing: Option<Reason> = None;
    loop {
        let Err(error) = work(options, observer, &mut standing).await;
        if matches!(error.meaning(), Meaning::NeedsPerson(_)) {
            return error;
        }
        let text = format!("{}; scheduled events wait", error.explained());
        tracing::warn!("{text}");
        standing = Some(observer.hold(Part::Database, text));
        tokio::time::sleep(AGAIN).await;
    }
}

/// Says that what is scheduled is not moved by a relay that reads another table. One that has no rights on `scheduled` has nothing to say.
async fn warn_of_waiting(options: &RelayOptions) {
    let Ok(mut session) = connect(options, "relay scheduled").await else { return };
    if let Ok(Some(_)) = due_in(options, &mut session).await {
        tracing::warn!("events wait in {}.scheduled: this relay reads a Debezium table, and moves none", options.schema);
    }
}

/// Moves events until something goes wrong.
async fn work(
    options: &RelayOptions,
    observer: &Observer,
    standing: &mut Option<Reason>,
) -> Result<std::convert::Infallible, Interruption> {
    let mut session = connect(options, "relay scheduled").await?;
    // A crash that loses a move loses both halves of it, and a relay publishes only what is on disk; a standby need not have it.
    within("preparing the session", sqlx::raw_sql("set synchronous_commit = local").execute(&mut session)).await?;
    // Whatever is due: a right that is missing is told now, and not when the first event is late.
    move_due(options, &mut session, observer).await?;
    *standing = None;
    loop {
        let pause = match due_in(options, &mut session).await? {
            None => LOOK_EVERY,
            Some(seconds) if seconds > 0.0 => Duration::from_secs_f64(seconds.min(LOOK_EVERY.as_secs_f64())),
            Some(overdue) => {
                observer.scheduled_overdue(Duration::from_secs_f64(-overdue));
                match move_due(options, &mut session, observer).await? {
                    0 => OTHERS_MOVE,
                    _ => continue,
                }
            }
        };
        if pause != OTHERS_MOVE {
            observer.scheduled_overdue(Duration::ZERO);
        }
        tokio::time::sleep(pause).await;
    }
}

/// In how many seconds the first event is due; none if nothing is scheduled.
async fn due_in(options: &RelayOptions, session: &mut PgConnection) -> Result<Option<f64>, Interruption> {
    let sql = format!(r#"select extract(epoch from min(due_at) - clock_timestamp())::float8 from "{}".scheduled"#, options.schema);
    within("looking for scheduled events", sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(session)).await
}

/// Moves a batch of what is due, the first ones first; how many.
async fn move_due(options: &RelayOptions, session: &mut PgConnection, observer: &Observer) -> Result<i64, Interruption> {
    let doing = "moving scheduled events to the outbox";
    let schema = &options.schema;
    // What is locked is being cancelled; it waits, and nothing waits for it. An id that the outbox has already is published already.
    let sql = format!(
        r#"with lock as materialized (
               select pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($1, 0::bigint)) as held
           ), due as materialized (
               select id from "{schema}".scheduled where (select held from lock) and due_at <= now()
               order by due_at, number limit {BATCH} for update skip locked
           ), moved as (
               delete from "{schema}".scheduled s using due where s.id = due.id returning s.*
           ), published as (
               insert into "{schema}".outbox ({COLUMNS}) select {VALUES} from moved order by due_at, number
               on conflict (id) do nothing returning id
           )
           select (select count(*) from moved), (select count(*) from published)"#
    );
    let query = sqlx::query_as(AssertSqlSafe(sql)).bind(format!("tidings scheduled {schema}"));
    // All of the answer: the row comes before the commit.
    let answer: Vec<(i64, i64)> = within(doing, query.fetch_all(session)).await?;
    let (moved, published) = answer.first().copied().unwrap_or_default();
    failpoint::reached(Step::ScheduledMoved);
    if moved > published {
        tracing::warn!(events = moved - published, "dropped scheduled events whose id was published already");
    }
    observer.scheduled_moved(published.cast_unsigned());
    Ok(moved)
}
