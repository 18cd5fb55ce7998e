//! Moves of due scheduled events to the outbox, by the leader.
//!
//! ```text
//! query: when is the first one due? ──later, or none──▶ sleep until then, a second at most
//!   ▲                │ now
//!   └──────── move a batch: delete there, insert here, one statement
//! ```
//!
//! Each event is moved exactly once, because one transaction deletes and inserts the row. The epoch
//! is therefore not checked, and leaders of several relays of one database may move events at the
//! same time. A lock admits one of them, so events keep the order of their due times. A moved event
//! is an event of the outbox, with the relay's delivery guarantee.

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
        monitor::metrics::{Component, Reason, RelayMetrics},
    },
};

/// Number of events moved at once. The short transaction lets other writers proceed.
const BATCH: i64 = 500;

/// Maximum sleep between two queries, so that an event that was scheduled in the meantime is not
/// late. A query reads the first entry of an index.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Delay while another relay's leader moves events, or due events are being cancelled.
const OTHERS_MOVE: Duration = Duration::from_millis(50);

/// Maximum number of events that are left out because the outbox refuses them. Each of them makes
/// queries slower.
const REFUSED_MAX: usize = 1_000;

/// Delay after a temporary error.
const AGAIN: Duration = Duration::from_secs(1);

/// Values of a scheduled event for the [`COLUMNS`] of the outbox. The event happened when it was
/// due, unless its publisher has set a time.
const VALUES: &str = "id, aggregatetype, aggregateid, type, version, payload, payload_bytes,
                          headers, coalesce(occurred_at, due_at), topic";

/// Moves events while the future is polled. Returns an error that an operator must correct.
pub(crate) async fn run(options: &RelayOptions, observer: &RelayMetrics) -> Interruption {
    // A Debezium table belongs to other programs, and Tidings does not write to it.
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
        standing = Some(observer.hold(Component::Database, text));
        tokio::time::sleep(AGAIN).await;
    }
}

/// Warns that a relay that reads another table does not move scheduled events. Does nothing without
/// rights on `scheduled`.
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

/// Moves events until an error occurs.
async fn work(
    options: &RelayOptions,
    observer: &RelayMetrics,
    standing: &mut Option<Reason>,
) -> Result<std::convert::Infallible, Interruption> {
    let mut session = connect(options, "relay scheduled").await?;
    // A crash that loses a move loses both halves of it, and a relay publishes only durable events.
    // A standby need not have it.
    within(
        "preparing the session",
        sqlx::raw_sql("set synchronous_commit = local").execute(&mut session),
    )
    .await?;
    let mut refused = Vec::new();
    // Tries a move even if no event is due, so that a missing right is reported before the first
    // event is late.
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

/// Returns the number of seconds until the first event is due. Returns `None` if no event is
/// scheduled. Events that the outbox refuses do not count.
async fn due_in(
    options: &RelayOptions,
    session: &mut PgConnection,
    refused: &[Uuid],
) -> Result<Option<f64>, Interruption> {
    let sql = format!(
        r#"select extract(epoch from min(due_at) - clock_timestamp())::float8
           from "{}".scheduled where id <> all ($1)"#,
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

/// Moves a batch of due events, the earliest first, and returns their number. An event that the
/// outbox refuses (a row from before a rule of the table) stays, and others are moved.
async fn move_due(
    options: &RelayOptions,
    session: &mut PgConnection,
    observer: &RelayMetrics,
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
                    "the outbox refuses a scheduled event: {}; it stays in {}.scheduled, others \
                     are moved. Correct the row or delete it, then restart the relay",
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

/// Returns `true` if an error concerns the data of a row: a violated constraint, or a value that
/// its column does not accept.
fn refuses_a_row(error: &Interruption) -> bool {
    error
        .code()
        .is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
}

/// Returns the event that is moved next.
async fn first_due(
    options: &RelayOptions,
    session: &mut PgConnection,
    refused: &[Uuid],
) -> Result<Option<Uuid>, Interruption> {
    let sql = format!(
        r#"select id from "{}".scheduled where due_at <= now() and id <> all ($1)
           order by due_at, number limit 1"#,
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

/// Moves a batch of due events, or only `only`, with one statement. Returns their number.
async fn move_batch(
    options: &RelayOptions,
    session: &mut PgConnection,
    observer: &RelayMetrics,
    refused: &[Uuid],
    only: Option<Uuid>,
) -> Result<i64, Interruption> {
    let doing = "moving scheduled events to the outbox";
    let schema = &options.schema;
    // A locked row is being cancelled. It is skipped and waits. An id that the outbox already
    // contains is already published.
    let sql = format!(
        r#"with lock as materialized (
               select pg_catalog.pg_try_advisory_xact_lock(
                   pg_catalog.hashtextextended($1, 0::bigint)) as held
           ), due as materialized (
               select id from "{schema}".scheduled
               where (select held from lock) and due_at <= now() and id <> all ($2)
                   and ($3 is null or id = $3)
               order by due_at, number limit {BATCH} for update skip locked
           ), moved as (
               delete from "{schema}".scheduled s using due where s.id = due.id returning s.*
           ), published as (
               insert into "{schema}".outbox ({COLUMNS})
               select {VALUES} from moved order by due_at, number
               on conflict (id) do nothing returning id
           )
           select (select count(*) from moved), (select count(*) from published)"#
    );
    let query = sqlx::query_as(AssertSqlSafe(sql))
        .bind(format!("tidings scheduled {schema}"))
        .bind(refused)
        .bind(only);
    // Reads the whole response, because the row precedes the commit.
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
