//! Text output of the parked events.

use std::collections::BTreeSet;

use crate::cli::{
    escape::escaped,
    table::{Align, list},
};
use crate::inspect::{
    parked::{OtherRelay, ParkedAggregate, ParkedEvent},
    units::{counted, grouped, size, time},
};
use crate::operator::parked::Decision;

/// Formats one line per aggregate, then the reason for each, and the remedy.
pub(super) fn waiting(
    relay: &str,
    waiting: &[ParkedAggregate],
    elsewhere: &[OtherRelay],
) -> String {
    if waiting.is_empty() {
        return nothing(relay, elsewhere);
    }
    let mut rows = vec![
        [
            "aggregate",
            "events",
            "waits",
            "tries",
            "decided",
            "topic",
            "blocking event",
        ]
        .map(String::from)
        .to_vec(),
    ];
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    rows.extend(waiting.iter().map(|one| {
        vec![
            format!("{}/{}", one.aggregate_type, one.aggregate_id),
            grouped(one.events),
            time(one.waits_seconds),
            one.tries.map_or("-".into(), |tries| tries.to_string()),
            text(&one.action),
            text(&one.topic),
            one.event.map_or("-".into(), |id| id.to_string()),
        ]
    }));
    let mut out = list(
        &[
            Align::Left,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Left,
            Align::Left,
            Align::Left,
        ],
        &rows,
    );
    out.push('\n');
    for one in waiting {
        let reason = one
            .reason
            .as_deref()
            .unwrap_or("no longer blocked: the relay will release it");
        let aggregate = format!("{}/{}", one.aggregate_type, one.aggregate_id);
        out.push_str(&format!("{}: {}\n", escaped(&aggregate), escaped(reason)));
    }
    out.push_str(&format!(
        "  -> fix the cause and run `tidings parked retry TYPE/ID --name {relay}`, or discard the \
         blocking event with `tidings parked discard EVENT --name {relay}`\n"
    ));
    out
}

/// Formats one line per event.
pub(super) fn events(relay: &str, events: &[ParkedEvent], elsewhere: &[OtherRelay]) -> String {
    if events.is_empty() {
        return nothing(relay, elsewhere);
    }
    let mut rows = vec![
        [
            "seq",
            "event",
            "aggregate",
            "payload",
            "waits",
            "decided",
            "why",
        ]
        .map(String::from)
        .to_vec(),
    ];
    rows.extend(events.iter().map(|event| {
        vec![
            event.to_seq.map_or_else(
                || event.seq.to_string(),
                |to| format!("{}..{to}", event.seq),
            ),
            event.id.to_string(),
            format!("{}/{}", event.aggregate_type, event.aggregate_id),
            event.payload_bytes.map_or("row deleted".into(), size),
            time(event.waits_seconds),
            event.action.clone().unwrap_or_else(|| "-".into()),
            why(event),
        ]
    }));
    use Align::{Left, Right, Text};
    list(&[Right, Left, Left, Right, Right, Left, Text], &rows)
}

fn why(event: &ParkedEvent) -> String {
    let behind = match event.to_seq {
        Some(_) => format!(
            "{} events that wait behind an earlier event",
            grouped(event.events)
        ),
        None => "waits behind an earlier event".into(),
    };
    let reason = event.reason.clone().unwrap_or(behind);
    match &event.waits_for {
        Some(_) => format!("{reason} (published once the topic is usable)"),
        None => reason,
    }
}

/// Reports that this relay has no parked events, and lists those of other relays.
pub(super) fn nothing(relay: &str, elsewhere: &[OtherRelay]) -> String {
    let mut out = format!("nothing is parked by relay {}\n", escaped(relay));
    for OtherRelay { relay, events } in elsewhere {
        let s = if *events == 1 { "" } else { "s" };
        let (events, name) = (grouped(*events), escaped(relay));
        out.push_str(&format!(
            "relay {name} has parked {events} event{s}\n  -> `tidings parked list --name {name}`\n"
        ));
    }
    out
}

/// Formats the effect of discarding events.
pub(super) fn discards(relay: &str, events: &[ParkedEvent]) -> String {
    let count: i64 = events.iter().map(|event| event.events).sum();
    let aggregates: BTreeSet<_> = events
        .iter()
        .map(|event| (&event.aggregate_type, &event.aggregate_id))
        .collect();
    format!(
        "relay {}: {} of {} will be discarded and never published",
        escaped(relay),
        counted(count, "event"),
        counted(aggregates.len() as i64, "aggregate")
    )
}

/// Maximum number of printed rows.
const SHOWN: usize = 100;

/// Formats the marked events.
pub(super) fn decided(
    relay: &str,
    events: &[ParkedEvent],
    elsewhere: &[OtherRelay],
    decision: Decision,
    dry_run: bool,
) -> String {
    let count: i64 = events.iter().map(|event| event.events).sum();
    let (s, verb) = (if count == 1 { "" } else { "s" }, decision.word());
    let (shown, more) = (
        &events[..events.len().min(SHOWN)],
        events.len().saturating_sub(SHOWN),
    );
    if count == 0 {
        return match elsewhere {
            [] => format!("relay {relay} has no parked events to {verb}\n"),
            elsewhere => nothing(relay, elsewhere),
        };
    }
    let mut out = self::events(relay, shown, elsewhere);
    if more > 0 {
        out.push_str(&format!("and {more} more rows\n"));
    }
    out.push('\n');
    out.push_str(&match (decision, dry_run) {
        (_, true) => format!("would {verb} {count} event{s}; nothing was marked\n"),
        (Decision::Retry, false) => {
            format!(
                "{count} event{s} marked: the leading relay retries within seconds; \
                 events that wait behind follow in order\n"
            )
        }
        (Decision::Discard, false) => {
            format!(
                "{count} event{s} marked: the leading relay discards and logs them within seconds; \
                 events that wait behind follow in order\n"
            )
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aggregate_is_a_record_in_80_columns_with_the_reason_and_the_remedy() {
        let one = ParkedAggregate {
            aggregate_type: "order".into(),
            aggregate_id: "7".into(),
            events: 1_200,
            waits_seconds: 250.0,
            event: Some(uuid::Uuid::nil()),
            topic: Some("order".into()),
            reason: Some("too large".into()),
            action: None,
            tries: Some(1),
        };
        let expected = "\
aggregate       order/7
events          1,200
waits           4 min 10 s
tries           1
decided         -
topic           order
blocking event  00000000-0000-0000-0000-000000000000

order/7: too large
  -> fix the cause and run `tidings parked retry TYPE/ID --name shop`, or discard the \
     blocking event with `tidings parked discard EVENT --name shop`
";
        let text = waiting("shop", &[one], &[]);
        assert_eq!(
            text.split_whitespace().collect::<Vec<_>>(),
            expected.split_whitespace().collect::<Vec<_>>(),
            "{text}"
        );
        assert_eq!(
            waiting("shop", &[], &[]),
            "nothing is parked by relay shop\n"
        );
    }

    #[test]
    fn what_other_relays_have_parked_is_named_with_the_command_that_lists_it() {
        let elsewhere = [OtherRelay {
            relay: "orders".into(),
            events: 1_200,
        }];
        let expected = "nothing is parked by relay shop\nrelay orders has parked 1,200 events\n  \
                        -> `tidings parked list --name orders`\n";
        assert_eq!(waiting("shop", &[], &elsewhere), expected);
        assert_eq!(events("shop", &[], &elsewhere), expected);
    }
}
