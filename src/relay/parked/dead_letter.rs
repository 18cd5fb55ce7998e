//! The other policy: an event that cannot be delivered goes to a topic of its own, with the reason, and its aggregate goes on.

use uuid::Uuid;

use crate::{
    event::{is_reserved_topic, is_topic_character},
    kafka::Headers,
};

/// Kafka's longest name for a topic.
const TOPIC_BYTES_MAX: usize = 249;

/// Stands before the topic of a dead letter whose own topic is reserved, so that the dead letter's is not.
const OF_RESERVED: &str = "reserved.";

/// The topic of dead letters for `topic`: `template` with `{topic}` replaced. Letters that no topic may have become `_`.
/// The result is never a reserved topic, whatever the row asked for.
pub(in crate::relay) fn dead_letter_topic(template: &str, topic: &str) -> String {
    let room = TOPIC_BYTES_MAX.saturating_sub(template.replace("{topic}", "").len());
    let legal = |topic: &str| topic.chars().map(|c| if is_topic_character(c) { c } else { '_' }).take(room).collect::<String>();
    let name = template.replace("{topic}", &legal(topic));
    if is_reserved_topic(&name) { template.replace("{topic}", &legal(&format!("{OF_RESERVED}{topic}"))) } else { name }
}

/// Headers that say why it is here.
pub(in crate::relay) fn explain(headers: Headers, topic: &str, reason: &str, id: Uuid, seq: Option<i64>) -> Headers {
    let headers = headers
        .put("tidings_original_topic", topic.as_bytes())
        .put("tidings_reason", reason.as_bytes())
        .put("tidings_event_id", id.to_string().as_bytes());
    match seq {
        Some(seq) => headers.put("tidings_seq", seq.to_string().as_bytes()),
        None => headers,
    }
}

/// What stands for a payload that Kafka does not take. `table` is schema and name.
pub(in crate::relay) fn reference(table: (&str, &str), id: Uuid, seq: Option<i64>) -> Vec<u8> {
    let (schema, table) = table;
    let mut row = serde_json::json!({ "schema": schema, "id": id });
    if let Some(seq) = seq {
        row["seq"] = seq.into();
    }
    if table != "outbox" {
        row["table"] = table.into();
    }
    serde_json::json!({ "outbox": row }).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_s_topic_is_always_one_that_kafka_takes() {
        assert_eq!(dead_letter_topic("{topic}.dead", "order"), "order.dead");
        assert_eq!(dead_letter_topic("{topic}.dead", "or dér"), "or_d_r.dead");
        assert_eq!(dead_letter_topic("dead", "order"), "dead");
        assert_eq!(dead_letter_topic("{topic}.dead", "tidings.position.a.b"), "reserved.tidings.position.a.b.dead");
        assert_eq!(dead_letter_topic("_{topic}", "_x"), "_reserved._x");
        for topic in ["ü".repeat(300), ".".into(), String::new()] {
            let dead = dead_letter_topic("{topic}.dead", &topic);
            assert!(crate::event::check_topic_name(&dead).is_ok(), "{dead}");
        }
    }
}
