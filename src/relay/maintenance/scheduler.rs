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
use uuid::Uuid;

use crate::{
    failpoint::{self, Step},
    outbox::COLUMNS,
    postgres::seconds,
    relay::{
        RelayOptions,
        error::{Interruption, Meaning},
        leadership::relay_store::{connect, within},
        monitor::metrics::{Observer, Part, Reason},
    },
};

/// Events moved at once: the transaction is short, and what else is written gets its turn.
const BATCH: i64 = 500;

/// Longest sleep between two looks, so that an event is not late that was scheduled meanwhile. A look reads the first entry of an index.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// While the leader of another relay moves, or what is due is being cancelled.
const OTHERS_MOVE: Duration = Duration::from_millis(50);

/// Most events that are left alone because the outbox refuses them: the more there are, the longer each look takes.
const REFUSED_MAX: usize = 1_000;

/// Before it is tried again after an error that passes.
const AGAIN: Duration = Duration::from_secs(1);

/// How [`COLUMNS`] of the outbox follow from a scheduled event. It happened when it was due, unless its publisher said otherwise.
const VALUES: &str = "id, aggregatetype, aggregateid, type, version, payload, payload_bytes, headers, coalesce(occurred_at, due_at), topic";

/// Moves events for as long as the future is polled, or until a person is needed.
pub(crate) async fn run(options: &RelayOptions, observer: &Observer) -> Interruption {
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
    let Ok(mut session) = connect(options, "relay scheduled").await else {
        return;
    };
    if let Ok(Some(_)) = due_in(options, &mut session, &[]).await {
        tracing::warn!(
            "events wait in {}.scheduled: this relay reads a Debezium table, and moves none",
            options.schema
        );
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
    within(
        "preparing the session",
        sqlx::raw_sql("set synchronous_commit = local").execute(&mut session),
    )
    .await?;
    let mut refused = Vec::new();
    // Whatever is due: a right that is missing is told now, and not when the first event is late.
    move_due(options, &mut session, observer, &mut refused).await?;
    *standing = None;
    loop {
        let pause = match due_in(options, &mut session, &refused).await? {
            None => LOOK_EVERY,
            Some(due) if due > 0.0 => seconds(due).min(LOOK_EVERY),
            Some(overdue) => {
                observer.scheduled_overdue(seconds(-overdue));
                match move_due(options, &mut session, observer, &mut refused).await? {
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

/// In how many seconds the first event is due; none if nothing is scheduled. Those that the outbox refuses do not count.
async fn due_in(
    options: &RelayOptions,
    session: &mut PgConnection,
    refused: &[Uuid],
) -> Result<Option<f64>, Interruption> {
    let sql = format!(
        r#"select extract(epoch from min(due_at) - clock_timestamp())::float8 from "{}".scheduled where id <> all ($1)"#,
        options.schema
    );
    within(
        "looking for scheduled events",
        sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(refused)
            .fetch_one(session),
    )
    .await
}

/// Moves a batch of what is due, the first ones first; how many. An event that the outbox refuses (a row from before a rule
/// of the table) is left where it is, and others are moved.
async fn move_due(
    options: &RelayOptions,
    session: &mut PgConnection,
    observer: &Observer,
    refused: &mut Vec<Uuid>,
) -> Result<i64, Interruption> {
    match move_batch(options, session, observer, refused, None).await {
        Err(error) if refuses_a_row(&error) && refused.len() < REFUSED_MAX => {}
        moved => return moved,
    }
    let mut moved = 0;
    while moved < BATCH
        && refused.len() < REFUSED_MAX
        && let Some(first) = first_due(options, session, refused).await?
    {
        match move_batch(options, session, observer, refused, Some(first)).await {
            Ok(0) => break,
            Ok(one) => moved += one,
            Err(error) if refuses_a_row(&error) => {
                tracing::error!(
                    event = %first,
                    "the outbox refuses a scheduled event: {}; it stays in {}.scheduled, others are moved. Correct the row or delete it, then \
                     restart the relay",
                    error.full(),
                    options.schema
                );
                refused.push(first);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(moved)
}

/// Whether an error is about the data of a row: a violated constraint, or a value that its column does not take.
fn refuses_a_row(error: &Interruption) -> bool {
    error
        .code()
        .is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
}

/// The event that is moved next.
async fn first_due(
    options: &RelayOptions,
    session: &mut PgConnection,
    refused: &[Uuid],
) -> Result<Option<Uuid>, Interruption> {
    let sql = format!(
        r#"select id from "{}".scheduled where due_at <= now() and id <> all ($1) order by due_at, number limit 1"#,
        options.schema
    );
    within(
        "looking for scheduled events",
        sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(refused)
            .fetch_optional(session),
    )
    .await
}

/// Moves a batch of events that are due, or only this one, by one statement; how many.
async fn move_batch(
    options: &RelayOptions,
    session: &mut PgConnection,
    observer: &Observer,
    refused: &[Uuid],
    only: Option<Uuid>,
) -> Result<i64, Interruption> {
    let doing = "moving scheduled events to the outbox";
    let schema = &options.schema;
    // What is locked is being cancelled; it waits, and nothing waits for it. An id that the outbox has already is published already.
    let sql = format!(
        r#"with lock as materialized (
               select pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($1, 0::bigint)) as held
           ), due as materialized (
               select id from "{schema}".scheduled
               where (select held from lock) and due_at <= now() and id <> all ($2) and ($3 is null or id = $3)
               order by due_at, number limit {BATCH} for update skip locked
           ), moved as (
               delete from "{schema}".scheduled s using due where s.id = due.id returning s.*
           ), published as (
               insert into "{schema}".outbox ({COLUMNS}) select {VALUES} from moved order by due_at, number
               on conflict (id) do nothing returning id
           )
           select (select count(*) from moved), (select count(*) from published)"#
    );
    let query = sqlx::query_as(AssertSqlSafe(sql))
        .bind(format!("tidings scheduled {schema}"))
        .bind(refused)
        .bind(only);
    // All of the answer: the row comes before the commit.
    let answer: Vec<(i64, i64)> = within(doing, query.fetch_all(session)).await?;
    let (moved, published) = answer.first().copied().unwrap_or_default();
    failpoint::reached(Step::ScheduledMoved);
    if moved > published {
        tracing::warn!(
            events = moved - published,
            "dropped scheduled events whose id was published already"
        );
    }
    observer.scheduled_moved(published.cast_unsigned());
    Ok(moved)
}
