//! Dead letters: an undeliverable event goes to a topic of its own, with the reason, and its
//! aggregate continues.

use uuid::Uuid;

use crate::{
    event::{is_reserved_topic, is_topic_character},
    kafka::Headers,
};

/// Maximum length of a topic name in Kafka.
const TOPIC_BYTES_MAX: usize = 249;

/// Prefix for the topic name of an event whose own topic is reserved. It makes the name of the dead
/// letter topic usable.
const OF_RESERVED: &str = "reserved.";

/// Returns the topic of dead letters for `topic`: `template` with `{topic}` replaced. Characters
/// that a topic name may not contain become `_`. The result is never a reserved topic, whatever
/// topic the row names.
pub(crate) fn dead_letter_topic(template: &str, topic: &str) -> String {
    let room = TOPIC_BYTES_MAX.saturating_sub(template.replace("{topic}", "").len());
    let legal = |topic: &str| {
        topic
            .chars()
            .map(|c| if is_topic_character(c) { c } else { '_' })
            .take(room)
            .collect::<String>()
    };
    let name = template.replace("{topic}", &legal(topic));
    if is_reserved_topic(&name) {
        template.replace("{topic}", &legal(&format!("{OF_RESERVED}{topic}")))
    } else {
        name
    }
}

/// Adds headers with the reason of the failure and the identity of the event.
pub(crate) fn explain(
    headers: Headers,
    topic: &str,
    reason: &str,
    id: Uuid,
    seq: Option<i64>,
) -> Headers {
    let headers = headers
        .put("tidings_original_topic", topic.as_bytes())
        .put("tidings_reason", reason.as_bytes())
        .put("tidings_event_id", id.to_string().as_bytes());
    match seq {
        Some(seq) => headers.put("tidings_seq", seq.to_string().as_bytes()),
        None => headers,
    }
}

/// Returns a reference that replaces a payload which Kafka does not accept. `table` is schema and
/// name.
pub(crate) fn reference(table: (&str, &str), id: Uuid, seq: Option<i64>) -> Vec<u8> {
    let (schema, table) = table;
    let mut row = serde_json::json!({ "schema": schema, "id": id });
    if let Some(seq) = seq {
        row["seq"] = seq.into();
    }
    if table != "outbox" {
        row["table"] = table.into();
    }
    serde_json::json!({ "outbox": row })
        .to_string()
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_s_topic_is_always_one_that_kafka_takes() {
        assert_eq!(dead_letter_topic("{topic}.dead", "order"), "order.dead");
        assert_eq!(dead_letter_topic("{topic}.dead", "or dér"), "or_d_r.dead");
        assert_eq!(dead_letter_topic("dead", "order"), "dead");
        assert_eq!(
            dead_letter_topic("{topic}.dead", "tidings.position.a.b"),
            "reserved.tidings.position.a.b.dead"
        );
        assert_eq!(dead_letter_topic("_{topic}", "_x"), "_reserved._x");
        for topic in ["ü".repeat(300), ".".into(), String::new()] {
            let dead = dead_letter_topic("{topic}.dead", &topic);
            assert!(crate::event::check_topic_name(&dead).is_ok(), "{dead}");
        }
    }
}
