//! `rewind` and `skip`: move the position of a relay, or report the effect of a move.
//!
//! The position in the database is at most one second older than the last published event. A rewind
//! therefore repeats at most one second of additional events, and no move skips an event that was
//! not selected. A single event is skipped *in addition* to the position, not by moving it: the
//! relay adds the event to the newest position that it finds, so no other event is repeated or
//! skipped.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, Row as _, types::Json};
use uuid::Uuid;

use super::{OperatorError, adopt, lease};
use crate::relay::position::{Change, GIVEN_UP_MAX, GivenUp, Identity, Position, Snapshot};

/// Maximum number of events that are counted. A larger number makes no difference to the operator.
const COUNTED_MAX: i64 = 1_000_000;

/// A move of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// Publish every event in the outbox again.
    RewindAll,
    /// Publish events younger than this again.
    RewindSince(DateTime<Utc>),
    /// Continue from the position in the database, regardless of the one in Kafka.
    RewindToMirror,
    /// Continue from the position in the database that this one replaces. No event is repeated or
    /// skipped.
    Adopt,
    /// Skip every event that is visible now.
    SkipAll,
    /// Skip this event.
    SkipEvent(Uuid),
}

/// Effect of a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Number of published events that will be published again.
    pub(crate) repeats: i64,
    /// Number of unpublished events that will be skipped.
    pub(crate) skips: i64,
    /// More events than were counted.
    pub(crate) is_lower_bound: bool,
    /// The position belongs to another database, so nothing is known about the events of this one.
    /// All events that will be published are counted in `repeats`.
    pub(crate) elsewhere: bool,
    /// Retention has deleted events that would otherwise be published.
    pub(crate) some_are_gone: bool,
}

/// State in the row of a relay.
pub(super) struct Stood {
    pub(super) position: Option<Position>,
    pub(super) identity: Option<Identity>,
    given_up: Vec<GivenUp>,
    floor: u64,
}

/// Current state of the server.
pub(super) struct Now {
    pub(super) snapshot: Snapshot,
    insert: crate::postgres::Lsn,
    pub(super) identity: Identity,
}

/// Moves the relay `name`, which must not be running. Only counts the events if `dry_run` is set.
///
/// # Errors
///
/// Returns a refusal with the reason, or the error of a failed query.
pub(crate) async fn move_relay(
    session: &mut PgConnection,
    schema: &str,
    name: &str,
    to: Move,
    dry_run: bool,
) -> Result<Moved, OperatorError> {
    let doing = "moving the relay";
    begin(session).await?;
    let moved = plan(session, schema, name, to, dry_run).await;
    let end = if moved.is_ok() && !dry_run {
        "commit"
    } else {
        "rollback"
    };
    sqlx::raw_sql(end)
        .execute(session)
        .await
        .map_err(OperatorError::sql(doing))?;
    moved
}

async fn plan(
    session: &mut PgConnection,
    schema: &str,
    name: &str,
    to: Move,
    dry_run: bool,
) -> Result<Moved, OperatorError> {
    if let Move::SkipEvent(id) = to {
        // Checked before the lease, because the remedy requires the relay to be running.
        refuse_parked(session, schema, name, id).await?;
    }
    lease::take(session, schema, name).await?;
    let stood = read(session, schema, name).await?;
    let now = look(session).await?;
    let elsewhere = stood
        .identity
        .as_ref()
        .is_some_and(|identity| identity.change(&now.identity) == Change::Database);
    let before = stood.position.clone().unwrap_or_else(Position::start);
    if to == Move::Adopt || (to == Move::RewindToMirror && elsewhere) {
        let from_kafka = to == Move::Adopt;
        return adopt::adopt(
            session,
            &adopt::Adoption {
                schema,
                name,
                stood: &stood,
                now: &now,
                from_kafka,
                dry_run,
            },
        )
        .await;
    }
    let after = match to {
        Move::SkipEvent(id) => {
            let event = find(session, schema, id).await?;
            if stood.given_up.len() + before.given_up.len() >= GIVEN_UP_MAX {
                return Err(OperatorError::Refused(format!(
                    "{GIVEN_UP_MAX} events are already skipped, and the relay has not passed them \
                     yet: run the relay, or use `tidings relay skip --all`"
                )));
            }
            if !dry_run {
                give_up(session, schema, name, &stood, event).await?;
            }
            let mut after = before.clone();
            after.give_up(event);
            after
        }
        Move::RewindToMirror if stood.position.is_none() => {
            return Err(OperatorError::Refused(format!(
                "the database has no position of relay `{name}`, because the relay has not started \
                 to publish"
            )));
        }
        Move::RewindToMirror | Move::Adopt => before.clone(),
        // Released events are removed from the table of parked events soon.
        Move::RewindAll => Position {
            released: before.released.clone(),
            ..Position::rewound_to_the_start(stood.floor)
        },
        Move::RewindSince(time) => {
            let first = first_younger(session, schema, time, &now.snapshot).await?;
            let unchanged = stood
                .identity
                .as_ref()
                .is_some_and(|identity| identity.change(&now.identity) == Change::None);
            if unchanged {
                before.rewound_to(first, stood.floor)
            } else {
                Position::of_all_below(first, stood.floor)
            }
        }
        Move::SkipAll if elsewhere => {
            Position::start().skipped_to(now.snapshot, now.insert, stood.floor)
        }
        Move::SkipAll => before.skipped_to(now.snapshot, now.insert, stood.floor),
    };
    // Any transaction of another database may have been published or not.
    let known = if elsewhere {
        Position::of_all_below(u64::MAX >> 2, 0)
    } else {
        before
    };
    let moved = count(session, schema, &known, &after).await?;
    if !dry_run && elsewhere && matches!(to, Move::SkipAll | Move::RewindAll) {
        adopt::renumber_foreign(session, schema, to == Move::SkipAll).await?;
    }
    if !dry_run && !matches!(to, Move::SkipEvent(_)) {
        store(session, schema, name, &after).await?;
    }
    let some_are_gone =
        stood.floor > 0 && matches!(to, Move::RewindAll | Move::RewindSince(_)) && {
            let needed = Position {
                forgone: 0,
                ..after
            };
            needed.needs_below(stood.floor)
        };
    Ok(Moved {
        elsewhere,
        some_are_gone,
        ..moved
    })
}

async fn begin(session: &mut PgConnection) -> Result<(), OperatorError> {
    // With `read committed`, each statement sees the changes that earlier ones waited for. The
    // timeout is long enough to count a large outbox.
    let begin = "begin isolation level read committed; set local statement_timeout = '10min'";
    sqlx::raw_sql(begin)
        .execute(session)
        .await
        .map(|_| ())
        .map_err(OperatorError::sql("beginning the transaction"))
}

async fn read(
    session: &mut PgConnection,
    schema: &str,
    name: &str,
) -> Result<Stood, OperatorError> {
    let doing = "reading the relay's position";
    // The lock keeps retention from deleting events that the move needs.
    let floor = format!("select floor::text from \"{schema}\".retention for update");
    let floor: Option<String> = sqlx::query_scalar(AssertSqlSafe(floor))
        .fetch_optional(&mut *session)
        .await
        .map_err(OperatorError::sql(doing))?;
    let sql = format!(
        "select coalesce(moved_to, position) as position, identity, given_up
         from \"{schema}\".relay where name = $1 for update"
    );
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .fetch_one(session)
        .await
        .map_err(OperatorError::sql(doing))?;
    let read = || -> Result<Stood, sqlx::Error> {
        Ok(Stood {
            position: row
                .try_get::<Option<Json<Position>>, _>("position")?
                .map(|Json(position)| position),
            identity: row
                .try_get::<Option<Json<Identity>>, _>("identity")?
                .map(|Json(identity)| identity),
            given_up: row
                .try_get::<Option<Json<Vec<GivenUp>>>, _>("given_up")?
                .map_or_else(Vec::new, |Json(events)| events),
            floor: floor.and_then(|floor| floor.parse().ok()).unwrap_or(0),
        })
    };
    read().map_err(OperatorError::sql(doing))
}

async fn look(session: &mut PgConnection) -> Result<Now, OperatorError> {
    let doing = "taking a snapshot";
    // In a single statement, the snapshot is taken before any of the functions runs.
    let sql = "select pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text";
    let (snapshot, insert): (String, String) = sqlx::query_as(sql)
        .fetch_one(&mut *session)
        .await
        .map_err(OperatorError::sql(doing))?;
    let snapshot = snapshot.parse().map_err(|error| {
        OperatorError::Refused(format!("the server returned an invalid snapshot: {error}"))
    })?;
    let identity = crate::relay::startup::server::identity(session)
        .await
        .map_err(OperatorError::sql("reading the identity of the server"))?;
    Ok(Now {
        snapshot,
        insert: insert.parse().unwrap_or_default(),
        identity,
    })
}

/// Returns the first transaction from which events must be published again to include everything
/// younger than `time`.
///
/// A transaction counts as younger if one of its events occurred at `time` or later, or if it
/// committed then and the server keeps commit timestamps. The result is never above the oldest open
/// transaction, which may still commit.
async fn first_younger(
    session: &mut PgConnection,
    schema: &str,
    time: DateTime<Utc>,
    now: &Snapshot,
) -> Result<u64, OperatorError> {
    let doing = "reading the younger events";
    let tracked: bool =
        sqlx::query_scalar("select current_setting('track_commit_timestamp')::boolean")
            .fetch_one(&mut *session)
            .await
            .map_err(OperatorError::sql(doing))?;
    let committed = if tracked {
        " or pg_xact_commit_timestamp(xid::xid) >= $1"
    } else {
        ""
    };
    let sql = format!(
        "select min(xid)::text from \"{schema}\".outbox where occurred_at >= $1{committed}"
    );
    let first = sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(sql))
        .bind(time)
        .fetch_one(session);
    let first = first
        .await
        .map_err(OperatorError::sql(doing))?
        .and_then(|xid| xid.parse().ok());
    Ok(first.unwrap_or(now.xmin()).min(now.xmin()))
}

async fn find(
    session: &mut PgConnection,
    schema: &str,
    id: Uuid,
) -> Result<GivenUp, OperatorError> {
    let sql = format!("select xid::text, seq from \"{schema}\".outbox where id = $1");
    let found: Option<(String, i64)> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(id)
        .fetch_optional(session)
        .await
        .map_err(OperatorError::sql("reading the event"))?;
    let found = found.and_then(|(xid, seq)| {
        Some(GivenUp {
            xid: xid.parse().ok()?,
            seq,
        })
    });
    found.ok_or_else(|| {
        OperatorError::Refused(format!(
            "event {id} is not in the outbox of schema {schema}"
        ))
    })
}

/// Refuses to skip a parked event. The relay's position has already passed it, so a skip would have
/// no effect and its aggregate would keep waiting.
async fn refuse_parked(
    session: &mut PgConnection,
    schema: &str,
    name: &str,
    id: Uuid,
) -> Result<(), OperatorError> {
    let sql = format!(
        "select aggregatetype || '/' || aggregateid from \"{schema}\".parked p
         where relay = $1 and (id = $2 or (to_seq is not null and exists (
             select from \"{schema}\".outbox o where o.id = $2 and o.seq between p.seq and p.to_seq
                 and o.aggregatetype = p.aggregatetype and o.aggregateid = p.aggregateid)))
         limit 1"
    );
    let parked = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(name)
        .bind(id)
        .fetch_optional(session)
        .await;
    let parked: Option<String> =
        parked.map_err(OperatorError::sql("checking whether the event is parked"))?;
    match parked {
        None => Ok(()),
        Some(aggregate) => Err(OperatorError::Refused(format!(
            "event {id} is parked: relay `{name}` has passed it, and events of {aggregate:?} wait \
             behind it\n  -> `tidings parked discard {id} --name {name}` discards it and releases \
             them; the relay must be running"
        ))),
    }
}

pub(super) async fn count(
    session: &mut PgConnection,
    schema: &str,
    before: &Position,
    after: &Position,
) -> Result<Moved, OperatorError> {
    let sql = format!(
        "select count(*) filter (where was), count(*) filter (where not was) from (
             select was from \"{schema}\".outbox o
             cross join lateral (
                 select \"{schema}\".is_published($1, o.xid, o.seq) as was,
                     \"{schema}\".is_published($2, o.xid, o.seq) as will_be
             ) p
             where was <> will_be limit $3
         ) differing"
    );
    let row = sqlx::query_as(AssertSqlSafe(sql))
        .bind(Json(before))
        .bind(Json(after))
        .bind(COUNTED_MAX)
        .fetch_one(session);
    let (repeats, skips): (i64, i64) = row.await.map_err(OperatorError::sql("counting events"))?;
    Ok(Moved {
        repeats,
        skips,
        is_lower_bound: repeats + skips >= COUNTED_MAX,
        elsewhere: false,
        some_are_gone: false,
    })
}

pub(super) async fn store(
    session: &mut PgConnection,
    schema: &str,
    name: &str,
    to: &Position,
) -> Result<(), OperatorError> {
    // The new epoch prevents an earlier leader from writing.
    let sql = format!(
        "update \"{schema}\".relay
         set moved_to = $2, adopts = null, given_up = null, epoch = epoch + 1, updated_at = now()
         where name = $1"
    );
    let stored = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(Json(to))
        .execute(session)
        .await;
    stored
        .map(|_| ())
        .map_err(OperatorError::sql("storing the move"))
}

/// Adds the event to a pending move, or to the position that the relay finds at its next start.
async fn give_up(
    session: &mut PgConnection,
    schema: &str,
    name: &str,
    stood: &Stood,
    event: GivenUp,
) -> Result<(), OperatorError> {
    let sql = format!(
        "update \"{schema}\".relay set epoch = epoch + 1, updated_at = now(),
                given_up = case when moved_to is null then $2 end,
             moved_to = jsonb_set(
                 moved_to, '{{given_up}}', coalesce(moved_to -> 'given_up', '[]') || $3
             )
         where name = $1"
    );
    let mut given_up = stood.given_up.clone();
    if !given_up.contains(&event) {
        given_up.push(event);
    }
    let stored = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .bind(Json(given_up))
        .bind(Json([event]))
        .execute(session)
        .await;
    stored
        .map(|_| ())
        .map_err(OperatorError::sql("skipping the event"))
}
