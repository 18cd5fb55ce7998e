//! Text output of the state of the relays.

use crate::cli::{
    escape::escaped,
    table::{self, Align},
};
use crate::inspect::{
    advice::{Advice, advice, overdue},
    relays::{COUNTED_MAX, RelayStatus, ScheduledStatus, Status},
    units::{grouped, size, time},
};

/// Formats one row per relay with its leader, its standbys and the age of its heartbeat.
pub(super) fn list(status: &Status) -> String {
    let head = [
        "relay",
        "leader",
        "standbys",
        "last heartbeat",
        "delivery",
        "reads",
        "position",
        "slot",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    for relay in &status.relays {
        rows.push(vec![
            relay.name.clone(),
            or_dash(&relay.leader),
            standbys(relay),
            relay
                .heartbeat_age_seconds
                .map_or("never".to_owned(), |age| format!("{} ago", time(age))),
            or_dash(&relay.delivery),
            or_dash(&relay.source),
            if relay.position.seen.is_some() {
                format!("{} old", time(relay.position_age_seconds))
            } else {
                "none".into()
            },
            if relay.slot.exists {
                relay.slot.name.clone()
            } else {
                "-".into()
            },
        ]);
    }
    match rows.len() {
        1 => "no relay has run yet\n".into(),
        _ => table::list(&[Align::Left; 8], &rows),
    }
}

/// Formats the whole status.
pub(super) fn text(status: &Status) -> String {
    if status.relays.is_empty() {
        let waiting = status.waiting_events.unwrap_or_default();
        let count = bounded(waiting);
        return format!(
            "no relay has run on schema {} yet; {count} events wait in the outbox\n  \
             -> run `tidings relay`\n",
            status.schema
        );
    }
    let mut text = relays(&status.relays);
    text.push('\n');
    text.push_str(&topics(&status.relays));
    let mut notes: Vec<String> = status.relays.iter().flat_map(advice).map(note).collect();
    notes.extend(scheduled(&status.scheduled));
    if !notes.is_empty() {
        text.push('\n');
        text.push_str(&notes.concat());
    }
    text
}

/// Formats a problem with its remedy. It begins with the relay's name if it belongs to one.
pub(super) fn note(advice: Advice) -> String {
    let relay = match advice.relay.as_str() {
        "" => String::new(),
        relay => format!("{}: ", escaped(relay)),
    };
    let (problem, remedy) = (escaped(&advice.problem), escaped(&advice.remedy));
    format!("{relay}{problem}\n  -> {remedy}\n")
}

fn relays(relays: &[RelayStatus]) -> String {
    use Align::{Left, Right, Status};
    let head = [
        "relay",
        "leader",
        "standbys",
        "epoch",
        "delivery",
        "reads",
        "published",
        "lag",
        "oldest",
        "slot",
        "WAL",
        "behind",
        "kept",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    for relay in relays {
        let bytes = |bytes: Option<i64>| bytes.map_or("-".to_owned(), size);
        let slot = match (relay.slot.exists, relay.slot.active) {
            (false, _) => "missing",
            (true, true) => "active",
            (true, false) => "inactive",
        };
        rows.push(vec![
            relay.name.clone(),
            or_dash(&relay.leader),
            standbys(relay),
            relay.epoch.to_string(),
            or_dash(&relay.delivery),
            or_dash(&relay.source),
            grouped(relay.published),
            relay.lag.text(),
            relay.lag.seconds.map_or("-".to_owned(), time),
            slot.to_owned(),
            or_dash(&relay.slot.wal_status),
            bytes(relay.lag.bytes),
            bytes(relay.slot.retained_bytes),
        ]);
    }
    table::list(
        &[
            Left, Left, Left, Right, Left, Left, Right, Right, Right, Status, Status, Right, Right,
        ],
        &rows,
    )
}

fn or_dash(text: &Option<String>) -> String {
    text.clone().unwrap_or_else(|| "-".to_owned())
}

fn standbys(relay: &RelayStatus) -> String {
    if relay.standbys.is_empty() {
        return "-".into();
    }
    relay.standbys.join(", ")
}

/// Formats a count that stops at one more than [`COUNTED_MAX`].
pub(super) fn bounded(events: i64) -> String {
    if events > COUNTED_MAX {
        format!("more than {}", grouped(COUNTED_MAX))
    } else {
        grouped(events)
    }
}

fn topics(relays: &[RelayStatus]) -> String {
    let mut rows = vec![
        ["topic", "relay", "partitions", "published"]
            .map(String::from)
            .to_vec(),
    ];
    for relay in relays {
        let topics = relay.topics.iter();
        rows.extend(topics.map(|topic| {
            vec![
                topic.topic.clone(),
                relay.name.clone(),
                topic.partitions.to_string(),
                grouped(topic.published),
            ]
        }));
    }
    if rows.len() == 1 {
        return "no topic yet\n".into();
    }
    table::list(
        &[Align::Left, Align::Left, Align::Right, Align::Right],
        &rows,
    )
}

/// Reports scheduled events, and whether they are overdue.
fn scheduled(scheduled: &ScheduledStatus) -> Option<String> {
    let events = bounded(scheduled.events);
    match overdue(scheduled).map(note) {
        Some(late) => Some(format!("events scheduled: {events}; {late}")),
        None if scheduled.events > 0 => Some(format!("events scheduled: {events}\n")),
        None => None,
    }
}

#[cfg(test)]
pub(super) use self::tests::{NONE_SCHEDULED, relay};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::relays::{
        LagStatus, ParkedStatus, PositionStatus, SlotStatus, TopicStatus, foreign::ForeignTable,
    };

    pub(in crate::cli::status) fn relay() -> RelayStatus {
        RelayStatus {
            name: "orders".into(),
            table: None,
            leader: Some("host:7".into()),
            lock_held_by: None,
            standbys: vec!["host:8".into()],
            epoch: 3,
            heartbeat_age_seconds: Some(1.0),
            position_age_seconds: 2.0,
            published: 1_234,
            kafka_cluster_id: None,
            source: Some("wal".into()),
            source_reason: Some("streams the log".into()),
            delivery: Some("exactly-once".into()),
            position: PositionStatus {
                log: Some("0/16B3748".into()),
                seen: Some("7:7:".into()),
            },
            lag: LagStatus {
                events: Some(12),
                events_is_lower_bound: false,
                events_estimate: None,
                bytes: Some(2_048),
                seconds: Some(0.25),
            },
            parked: ParkedStatus {
                events: 0,
                aggregates: 0,
            },
            slot: SlotStatus {
                name: "tidings_orders".into(),
                exists: true,
                active: true,
                wal_status: Some("reserved".into()),
                confirmed_flush_lsn: None,
                retained_bytes: Some(16 << 20),
                safe_wal_size: None,
            },
            topics: vec![TopicStatus {
                topic: "order".into(),
                partitions: 6,
                published: 1_234,
                held_seconds: None,
            }],
        }
    }

    pub(in crate::cli::status) const NONE_SCHEDULED: ScheduledStatus = ScheduledStatus {
        events: 0,
        overdue_seconds: None,
    };

    fn shown(relay: RelayStatus) -> String {
        text(&Status {
            schema: "tidings".into(),
            relays: vec![relay],
            waiting_events: None,
            scheduled: NONE_SCHEDULED,
        })
    }

    #[test]
    fn a_relay_is_a_record_in_80_columns_and_a_healthy_one_has_no_notes() {
        let expected = "\
relay      orders
leader     host:7
standbys   host:8
epoch      3
delivery   exactly-once
reads      wal
published  1,234
lag        12
oldest     0.2 s
slot       active
WAL        reserved
behind     2.0 KiB
kept       16.0 MiB

topic  relay   partitions  published
order  orders           6      1,234
";
        assert_eq!(shown(relay()), expected);
    }

    #[test]
    fn what_is_wrong_with_a_relay_comes_with_what_to_do() {
        let mut table = relay();
        table.source = Some("table".into());
        table.source_reason = Some("the slot is being created".into());
        assert!(shown(table).contains("orders: reads the table: the slot is being created\n  ->"));
        let mut begins = relay();
        (begins.source, begins.source_reason) = (Some("table".into()), Some(String::new()));
        assert!(
            !shown(begins).contains("reads the table"),
            "no note without a reason"
        );
        let mut foreign = relay();
        foreign.table = Some(ForeignTable {
            schema: "public".into(),
            name: "outboxevent".into(),
        });
        (foreign.lag.events, foreign.lag.seconds) = (None, None);
        let text = shown(foreign);
        assert!(
            text.contains("lag        ?\noldest     -\n")
                && text.contains("cannot be counted in table public.outboxevent\n  ->"),
            "{text}"
        );
        let mut held = relay();
        held.topics[0].held_seconds = Some(90.0);
        let text = shown(held);
        assert!(
            text.contains("topic order is being grown")
                && text.contains("1 min 30 s at most\n  ->"),
            "{text}"
        );
        let mut parked = relay();
        parked.parked = ParkedStatus {
            events: 1_200,
            aggregates: 3,
        };
        assert!(shown(parked).contains("events parked: 1,200, of aggregates: 3"));
        let mut stalled = relay();
        stalled.position_age_seconds = 300.0;
        stalled.lag.seconds = Some(40.0);
        let text = shown(stalled);
        assert!(
            text.contains("none was published for 40.0 s, although host:7 leads\n  ->"),
            "{text}"
        );
        let mut progresses = relay();
        progresses.lag.seconds = Some(4_000.0);
        assert!(!shown(progresses).contains("none was published"));
        let mut lost = relay();
        lost.slot.wal_status = Some("lost".into());
        assert!(shown(lost).contains("removed WAL"));
        let mut locked = relay();
        locked.slot.active = false;
        locked.heartbeat_age_seconds = Some(250.0);
        locked.lock_held_by = Some("session 7 (role app, application `psql`)".into());
        let text = shown(locked);
        assert!(
            text.contains("session 7 (role app, application `psql`) holds the lock")
                && !text.contains("not running"),
            "{text}"
        );
        let mut streaming = relay();
        streaming.heartbeat_age_seconds = Some(250.0);
        assert!(
            !shown(streaming).contains("->"),
            "a relay that holds its slot is running, even if its heartbeat is late"
        );
        let mut stopped = relay();
        stopped.slot.active = false;
        stopped.heartbeat_age_seconds = Some(250.0);
        let text = shown(stopped);
        assert!(
            text.contains("not running (last heartbeat 4 min 10 s ago)")
                && text.contains("`tidings relay forget orders`"),
            "{text}"
        );
    }

    #[test]
    fn what_is_scheduled_is_counted_and_said_to_be_late_only_when_it_is() {
        let note = |events, overdue_seconds| {
            scheduled(&ScheduledStatus {
                events,
                overdue_seconds,
            })
        };
        assert_eq!(note(0, None), None);
        assert_eq!(
            note(1_200, Some(0.4)).as_deref(),
            Some("events scheduled: 1,200\n")
        );
        assert!(
            note(3, Some(65.0))
                .is_some_and(|text| text.contains("has been due for 1 min 5 s\n  ->"))
        );
    }

    #[test]
    fn more_events_than_are_counted_and_no_relay_at_all_are_said() {
        let mut behind = relay();
        behind.lag = LagStatus {
            events: Some(COUNTED_MAX),
            events_is_lower_bound: true,
            events_estimate: None,
            bytes: None,
            seconds: Some(4_000.0),
        };
        let text = shown(behind);
        assert!(
            text.contains("> 10,000") && text.contains("1 h 6 min"),
            "{text}"
        );
        let mut estimated = relay();
        estimated.lag = LagStatus {
            events: Some(COUNTED_MAX),
            events_is_lower_bound: true,
            events_estimate: Some(2_999_001),
            bytes: None,
            seconds: None,
        };
        assert!(shown(estimated).contains("~ 2,999,001"));
        let none = super::text(&Status {
            schema: "tidings".into(),
            relays: Vec::new(),
            waiting_events: Some(5),
            scheduled: NONE_SCHEDULED,
        });
        assert!(
            none.contains("no relay has run") && none.contains("5 events wait"),
            "{none}"
        );
    }
}
