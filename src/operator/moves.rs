//! `rewind` and `skip`: move the position of a relay, or report the effect of a move.
//!
//! The position in the database is at most one second older than the last published event. A rewind
//! therefore repeats at most one second of additional events, and no move skips an event that was
//! not selected. A single event is skipped *in addition* to the position, not by moving it: the
//! relay adds the event to the newest position that it finds, so no other event is repeated or
//! skipped.

mod store;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

pub(super) use self::store::{Now, Stood, count, store};
use self::store::{begin, find, first_younger, give_up, look, read, refuse_parked};
use super::{OperatorError, adopt, end_transaction, lease};
use crate::relay::position::{Change, GIVEN_UP_MAX, Position};

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
    begin(session).await?;
    let moved = plan(session, schema, name, to, dry_run).await;
    end_transaction(session, moved.is_ok() && !dry_run, "moving the relay").await?;
    moved
}

/// Takes the lease of the relay, and determines the effect of the move. Stores it unless `dry_run`
/// is set.
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
    let relay = Halted {
        schema,
        name,
        stood: read(session, schema, name).await?,
        now: look(session).await?,
    };
    let elsewhere = relay.is_elsewhere();
    if to == Move::Adopt || (to == Move::RewindToMirror && elsewhere) {
        let adoption = adopt::Adoption {
            schema,
            name,
            stood: &relay.stood,
            now: &relay.now,
            from_kafka: to == Move::Adopt,
            dry_run,
        };
        return adopt::adopt(session, &adoption).await;
    }
    let before = relay.position();
    let after = match to {
        Move::SkipEvent(id) => relay.skip_event(session, id, dry_run).await?,
        Move::RewindSince(time) => relay.rewind_since(session, time).await?,
        Move::RewindToMirror if relay.stood.position.is_none() => {
            return Err(OperatorError::Refused(format!(
                "the database has no position of relay `{name}`, because the relay has not started \
                 to publish"
            )));
        }
        Move::RewindToMirror | Move::Adopt => before.clone(),
        // Released events are removed from the table of parked events soon.
        Move::RewindAll => Position {
            released: before.released.clone(),
            ..Position::rewound_to_the_start(relay.stood.floor)
        },
        Move::SkipAll => relay.skip_all(),
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
    Ok(Moved {
        elsewhere,
        some_are_gone: relay.has_lost_events(to, after),
        ..moved
    })
}

/// A relay that does not run, because the command holds its lease.
struct Halted<'r> {
    schema: &'r str,
    name: &'r str,
    stood: Stood,
    now: Now,
}

impl Halted<'_> {
    /// Returns the position of the relay, or the start if it has none.
    fn position(&self) -> Position {
        self.stood.position.clone().unwrap_or_else(Position::start)
    }

    /// Returns the difference between the database of the position and this one.
    fn change(&self) -> Option<Change> {
        let identity = self.stood.identity.as_ref()?;
        Some(identity.change(&self.now.identity))
    }

    /// Returns `true` if the position belongs to another database.
    fn is_elsewhere(&self) -> bool {
        self.change() == Some(Change::Database)
    }

    /// Adds an event to the skipped ones, unless `dry_run` is set. Returns the position without it.
    async fn skip_event(
        &self,
        session: &mut PgConnection,
        id: Uuid,
        dry_run: bool,
    ) -> Result<Position, OperatorError> {
        let (stood, mut after) = (&self.stood, self.position());
        let event = find(session, self.schema, id).await?;
        if stood.given_up.len() + after.skipped.len() >= GIVEN_UP_MAX {
            return Err(OperatorError::Refused(format!(
                "{GIVEN_UP_MAX} events are already skipped, and the relay has not passed them \
                 yet: run the relay, or use `tidings relay skip --all`"
            )));
        }
        if !dry_run {
            give_up(session, self.schema, self.name, stood, event).await?;
        }
        after.give_up(event);
        Ok(after)
    }

    /// Returns the position before the first event that is younger than `time`.
    async fn rewind_since(
        &self,
        session: &mut PgConnection,
        time: DateTime<Utc>,
    ) -> Result<Position, OperatorError> {
        let first = first_younger(session, self.schema, time, &self.now.snapshot).await?;
        Ok(if self.change() == Some(Change::None) {
            self.position().rewound_to(first, self.stood.floor)
        } else {
            Position::of_all_below(first, self.stood.floor)
        })
    }

    /// Returns the position after every event that is visible now.
    fn skip_all(&self) -> Position {
        let before = if self.is_elsewhere() {
            Position::start()
        } else {
            self.position()
        };
        before.skipped_to(self.now.snapshot.clone(), self.now.insert, self.stood.floor)
    }

    /// Returns `true` if retention has deleted events that a rewind to `after` would publish.
    fn has_lost_events(&self, to: Move, after: Position) -> bool {
        let rewinds = matches!(to, Move::RewindAll | Move::RewindSince(_));
        let needed = Position { floor: 0, ..after };
        self.stood.floor > 0 && rewinds && needed.needs_below(self.stood.floor)
    }
}
