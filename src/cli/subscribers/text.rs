//! Text output about pauses and parked events of subscribers.

use crate::cli::{
    escape::{escaped, escaped_bytes, escaped_json},
    table::{self, Align},
};
use crate::inspect::json::indented;
use crate::inspect::parked_by_subscribers::{
    ParkedHead, SubscriberParkedContent, SubscriberParkedEvent,
};
use crate::inspect::subscribers::SubscriberPause;
use crate::inspect::units::{grouped, size, utc};
use crate::operator::Marked;
use crate::operator::parked::Decision;

/// Maximum number of printed rows of marked events.
const SHOWN: usize = 100;

/// Describes a pause in one line.
pub(super) fn paused(consumer: &str, pause: &SubscriberPause) -> String {
    let reason = pause.reason.as_deref().unwrap_or("no reason given");
    format!(
        "{} is paused since {} by {}: {}",
        escaped(consumer),
        utc(pause.since),
        escaped(&pause.by),
        escaped(reason)
    )
}

/// Formats one line per parked aggregate, then the error of each.
pub(super) fn heads(heads: &[ParkedHead]) -> String {
    if heads.is_empty() {
        return "no subscriber has parked an event\n".into();
    }
    let titles = [
        "number",
        "subscriber",
        "aggregate",
        "events",
        "type",
        "event",
        "attempts",
        "next attempt",
        "decided",
    ];
    let mut rows = vec![titles.map(String::from).to_vec()];
    rows.extend(heads.iter().map(|head| {
        let mut row = row(&head.event);
        row.insert(3, grouped(head.events));
        row
    }));
    use Align::{Left, Right, Text};
    let columns = [Right, Left, Text, Right, Text, Left, Right, Left, Left];
    let mut text = table::list(&columns, &rows) + "\n";
    for ParkedHead { event, .. } in heads {
        let error = event
            .error
            .as_deref()
            .unwrap_or("waits for its first attempt");
        text.push_str(&format!("{}: {}\n", aggregate(event), escaped(error)));
    }
    text + "  -> fix the cause and run `tidings subscribers parked retry TOPIC/KEY`, or discard the \
            blocking event with `tidings subscribers parked discard NUMBER`\n"
}

/// Formats the effect of discarding events.
pub(super) fn discards(consumer: &str, count: i64) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!(
        "subscriber {}: {} event{s} will be discarded and never handled",
        escaped(consumer),
        grouped(count)
    )
}

/// Formats events with their records. Everything except numbers is untrusted text.
pub(super) fn contents(events: &[SubscriberParkedContent]) -> String {
    if events.is_empty() {
        return "no subscriber has parked an event\n".into();
    }
    let all: Vec<String> = events.iter().map(whole).collect();
    all.join("\n")
}

fn whole(content: &SubscriberParkedContent) -> String {
    let event = &content.event;
    let mut text = format!(
        "number   {} of {}\nevent    {} {}\nrecord   {}/{} at offset {}\nkey      {}\n\
         since    {}\nattempts {} since it was parked, {} before\nnext     {}\n",
        event.seq,
        escaped(&event.consumer),
        shown(event.event_type.as_deref()),
        shown(event.event_id.as_deref()),
        escaped(&event.topic),
        event.partition,
        event.record_offset,
        escaped_bytes(&event.key),
        utc(event.parked_at),
        event.attempts,
        event.attempts_before,
        utc(event.next_attempt_at),
    );
    let error = event
        .error
        .as_deref()
        .unwrap_or("waits behind an earlier event");
    text.push_str(&format!("error    {}\n", escaped(error)));
    if let Some(action) = &event.action {
        let by = event.decided_by.as_deref().unwrap_or("unknown");
        text.push_str(&format!(
            "decided  {} by {}\n",
            escaped(action),
            escaped(by)
        ));
    }
    for (name, value) in &content.headers {
        text.push_str(&format!(
            "header   {}: {}\n",
            escaped(name),
            value.as_deref().map_or("null".into(), escaped_bytes)
        ));
    }
    text.push_str(&value(content));
    text
}

/// Formats the value: JSON with line breaks, text, or hexadecimal digits.
fn value(content: &SubscriberParkedContent) -> String {
    let Some(bytes) = &content.value else {
        return "value    null\n".into();
    };
    let read = std::str::from_utf8(bytes)
        .ok()
        .filter(|text| !text.contains('\0'));
    let mut text = match read {
        Some(json) if serde_json::from_str::<serde::de::IgnoredAny>(json).is_ok() => {
            format!("value\n{}\n", escaped_json(&indented(json)))
        }
        _ => format!("value    {}\n", escaped_bytes(bytes)),
    };
    let whole = i64::from(content.value_bytes.unwrap_or_default());
    if whole > bytes.len() as i64 {
        text.push_str(&format!(
            "only the beginning is shown; the value has {}\n",
            size(whole)
        ));
    }
    text
}

/// Formats the events that a decision marks.
pub(super) fn marked(marked: &Marked, decision: Decision, dry_run: bool) -> String {
    let (count, verb) = (marked.count, decision.word());
    let s = if count == 1 { "" } else { "s" };
    if count == 0 {
        return format!("there are no such parked events to {verb}\n");
    }
    let titles = [
        "number",
        "subscriber",
        "aggregate",
        "type",
        "event",
        "attempts",
        "next attempt",
        "decided",
    ];
    let mut rows = vec![titles.map(String::from).to_vec()];
    rows.extend(marked.events.iter().take(SHOWN).map(row));
    use Align::{Left, Right, Text};
    let columns = [Right, Left, Text, Text, Left, Right, Left, Left];
    let mut text = table::list(&columns, &rows);
    let more = count - rows.len().saturating_sub(1) as i64;
    if more > 0 {
        text.push_str(&format!("and {} more\n", grouped(more)));
    }
    let outcome = match dry_run {
        true => format!("would {verb} {count} event{s}; nothing was marked\n"),
        false => format!("{count} event{s} marked to {verb}\n"),
    };
    format!("{text}\n{outcome}")
}

fn row(event: &SubscriberParkedEvent) -> Vec<String> {
    vec![
        event.seq.to_string(),
        event.consumer.clone(),
        aggregate(event),
        shown(event.event_type.as_deref()),
        shown(event.event_id.as_deref()),
        event.attempts.to_string(),
        utc(event.next_attempt_at),
        event.action.clone().unwrap_or_else(|| "-".into()),
    ]
}

/// Formats topic and key, escaped.
fn aggregate(event: &SubscriberParkedEvent) -> String {
    format!("{}/{}", escaped(&event.topic), escaped_bytes(&event.key))
}

fn shown(bytes: Option<&[u8]>) -> String {
    bytes.map_or("-".into(), escaped_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;

    fn content(value: &[u8]) -> SubscriberParkedContent {
        SubscriberParkedContent {
            event: SubscriberParkedEvent {
                seq: 12,
                consumer: "stock".into(),
                topic: "order".into(),
                partition: 3,
                record_offset: 120,
                key: b"17".to_vec(),
                event_id: Some(b"e-1".to_vec()),
                event_type: Some(b"OrderPlaced".to_vec()),
                attempts: 2,
                attempts_before: 5,
                error: Some("no \u{1b}[31mstock".into()),
                next_attempt_at: DateTime::UNIX_EPOCH,
                parked_at: DateTime::UNIX_EPOCH,
                action: Some("discard".into()),
                decided_by: Some("ada".into()),
            },
            headers: vec![
                ("ce_id".into(), Some(b"e-1".to_vec())),
                ("x\n".into(), None),
            ],
            value: Some(value.to_vec()),
            value_bytes: i32::try_from(value.len()).ok(),
        }
    }

    #[test]
    fn an_event_is_shown_whole_and_cannot_control_the_terminal() {
        let text = contents(&[content(br#"{"order":17}"#)]);
        for part in [
            "number   12 of stock",
            "event    OrderPlaced e-1",
            "record   order/3 at offset 120",
            "attempts 2 since it was parked, 5 before",
            "error    no \\u{1b}[31mstock",
            "decided  discard by ada",
            "header   x\\n: null",
            "value\n{\n  \"order\": 17\n}\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let binary = contents(&[content(&[0, 0xff])]);
        assert!(binary.contains("value    (binary) 0x00ff"), "{binary}");
    }

    #[test]
    fn a_dry_run_differs_from_a_decision() {
        let marked_events = Marked {
            count: 2,
            events: vec![content(b"{}").event],
        };
        let text = marked(&marked_events, Decision::Discard, true);
        assert!(
            text.contains("would discard 2 events; nothing was marked") && text.contains("1 more"),
            "{text}"
        );
        let text = marked(&marked_events, Decision::Retry, false);
        assert!(text.contains("2 events marked to retry"), "{text}");
    }
}
