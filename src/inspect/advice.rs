//! Problems of a relay, each with its remedy.

use serde::Serialize;

use super::{
    relays::{RelayStatus, ScheduledStatus, TopicStatus},
    units::{grouped, time},
};

/// Age of a heartbeat above which a leader counts as dead. A lease lasts ten seconds.
const HEARTBEAT_SECONDS_MAX: f64 = 15.0;

/// Time without progress above which events that wait are reported. The position is stored every
/// second while events are published, and `stall_after` has a default of 15 s.
const STALLED_SECONDS_MAX: f64 = 20.0;

/// Delay above which scheduled events are reported. A leader moves an event within a second of its
/// due time.
const OVERDUE_SECONDS_MAX: f64 = 5.0;

/// A problem and its remedy.
type Note = (String, String);

/// A problem of a relay, with its remedy. The text is not escaped: parts of it come from rows and
/// servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Advice {
    pub(crate) relay: String,
    pub(crate) problem: String,
    pub(crate) remedy: String,
}

/// Returns the problems of a relay, each with its remedy. Those that stop all events come first.
pub(crate) fn advice(relay: &RelayStatus) -> Vec<Advice> {
    let all = [
        not_running(relay),
        foreign_lock(relay),
        stalled(relay),
        lost_log(relay),
    ];
    let held = relay.topics.iter().map(held_topic);
    let some = [parked(relay), reads_table(relay), uncountable(relay)];
    let notes = all.into_iter().chain(held).chain(some).flatten();
    let advice = |(problem, remedy): Note| Advice {
        relay: relay.name.clone(),
        problem,
        remedy,
    };
    notes.map(advice).collect()
}

/// Returns the problem of scheduled events that were not moved to the outbox in time. It belongs to
/// no relay.
pub(crate) fn overdue(scheduled: &ScheduledStatus) -> Option<Advice> {
    let seconds = scheduled.overdue_seconds?;
    (seconds > OVERDUE_SECONDS_MAX).then(|| Advice {
        relay: String::new(),
        problem: format!(
            "the first scheduled event has been due for {}",
            time(seconds)
        ),
        remedy: "make sure that a relay leads; a relay that reads a Debezium table moves none"
            .into(),
    })
}

/// The relay reads the table instead of the log.
fn reads_table(relay: &RelayStatus) -> Option<Note> {
    let reason = relay
        .source_reason
        .as_ref()
        .filter(|reason| !reason.is_empty())?;
    (relay.source.as_deref() == Some("table")).then(|| {
        (
            format!("reads the table: {reason}"),
            "events stay in order and none is lost; once caught up, the log has the lower latency"
                .into(),
        )
    })
}

/// The events of a table cannot be counted.
fn uncountable(relay: &RelayStatus) -> Option<Note> {
    let (Some(table), None) = (&relay.table, relay.lag.events) else {
        return None;
    };
    Some((
        format!("events that wait cannot be counted in table {table}"),
        "`behind` is the amount of log they are in; to count them, add the columns seq and \
         xid and grant SELECT to this role (docs/from-debezium.md)"
            .into(),
    ))
}

/// A topic is being grown.
fn held_topic(topic: &TopicStatus) -> Option<Note> {
    let seconds = topic.held_seconds?;
    Some((
        format!(
            "topic {} is being grown: its events and all later ones are held back, \
             for {} at most",
            topic.topic,
            time(seconds)
        ),
        format!(
            "let `tidings topics grow` finish, or run `tidings topics grow {} --abort`",
            topic.topic
        ),
    ))
}

/// Events are parked.
fn parked(relay: &RelayStatus) -> Option<Note> {
    let (name, parked) = (&relay.name, &relay.parked);
    (parked.events > 0).then(|| {
        let (events, aggregates) = (grouped(parked.events), grouped(parked.aggregates));
        (
            format!(
                "events parked: {events}, of aggregates: {aggregates}; each cannot be delivered, \
                 or waits behind such an event of its aggregate"
            ),
            format!("`tidings parked list --name {name}` shows the reasons"),
        )
    })
}

/// The server has removed log that the slot has not read, or is about to.
fn lost_log(relay: &RelayStatus) -> Option<Note> {
    let (name, slot) = (&relay.name, &relay.slot);
    match slot.wal_status.as_deref()? {
        "lost" => Some((
            format!(
                "the server removed WAL that its slot {} had not read",
                slot.name
            ),
            format!(
                "run `tidings relay --name {name}`: it publishes the missed events from the table \
                 and recreates the slot; raise max_slot_wal_keep_size"
            ),
        )),
        "unreserved" => Some((
            format!(
                "the server is about to remove WAL that its slot {} has not read",
                slot.name
            ),
            "make sure that the relay catches up, or raise max_slot_wal_keep_size now".into(),
        )),
        _ => None,
    }
}

/// A session that is not a relay holds the lock of the lease.
fn foreign_lock(relay: &RelayStatus) -> Option<Note> {
    let holder = relay.lock_held_by.as_ref()?;
    Some((
        format!("nothing is published: {holder} holds the lock of its lease but is not a relay"),
        "wait for that session, or end it with select pg_terminate_backend(PID); \
         revoke CONNECT from roles that should not use this database"
            .into(),
    ))
}

/// A process leads and publishes nothing, although events wait.
fn stalled(relay: &RelayStatus) -> Option<Note> {
    let (leader, lag) = (relay.leader.as_ref()?, &relay.lag);
    let is_held = relay
        .topics
        .iter()
        .any(|topic| topic.held_seconds.is_some());
    let waits = lag.events.is_some_and(|events| events > 0) && !is_held && !is_silent(relay);
    // An event may be older than its row.
    let seconds = lag.seconds?.min(relay.position_age_seconds);
    (waits && seconds > STALLED_SECONDS_MAX).then(|| {
        (
            format!(
                "events wait, and none was published for {}, although {leader} leads",
                time(seconds)
            ),
            "its `/health/ready` and its log name the reason (docs/operating.md)".into(),
        )
    })
}

/// Returns `true` if the last heartbeat is older than the lease of a living leader.
fn is_silent(relay: &RelayStatus) -> bool {
    let age = relay.heartbeat_age_seconds;
    age.is_none_or(|age| age > HEARTBEAT_SECONDS_MAX)
}

/// No process leads.
fn not_running(relay: &RelayStatus) -> Option<Note> {
    let (name, slot, age) = (&relay.name, &relay.slot, relay.heartbeat_age_seconds);
    if !is_silent(relay) || slot.active || relay.lock_held_by.is_some() {
        return None;
    }
    let since = age.map_or("it has never led".to_owned(), |age| {
        format!("last heartbeat {} ago", time(age))
    });
    let retains = if slot.exists {
        "; its slot retains WAL on the server's disk"
    } else {
        ""
    };
    Some((
        format!("not running ({since}){retains}"),
        format!(
            "run `tidings relay --name {name}`, or `tidings relay forget {name}` \
             if it will not run again"
        ),
    ))
}
