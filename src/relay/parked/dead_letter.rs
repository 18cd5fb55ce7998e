//! The other policy: an event that cannot be delivered goes to a topic of its own, with the reason, and its aggregate goes on.

use uuid::Uuid;

use crate::{event::is_topic_character, kafka::Headers};

/// Kafka's longest name for a topic.
const TOPIC_BYTES_MAX: usize = 249;

/// The topic of dead letters for `topic`: `template` with `{topic}` replaced. Letters that no topic may have become `_`.
pub(in crate::relay) fn dead_letter_topic(template: &str, topic: &str) -> String {
    let room = TOPIC_BYTES_MAX.saturating_sub(template.replace("{topic}", "").len());
    let legal: String = topic.chars().map(|c| if is_topic_character(c) { c } else { '_' }).take(room).collect();
    template.replace("{topic}", &legal)
}

/// Headers that say why it is here.
pub(in crate::relay) fn explain(headers: Headers, topic: &str, reason: &str, id: Uuid, seq: i64) -> Headers {
    headers
        .put("tidings_original_topic", topic.as_bytes())
        .put("tidings_reason", reason.as_bytes())
        .put("tidings_event_id", id.to_string().as_bytes())
        .put("tidings_seq", seq.to_string().as_bytes())
}

/// What stands for a payload that Kafka does not take.
pub(in crate::relay) fn reference(schema: &str, id: Uuid, seq: i64) -> Vec<u8> {
    serde_json::json!({ "outbox": { "schema": schema, "seq": seq, "id": id } }).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_s_topic_is_always_one_that_kafka_takes() {
        assert_eq!(dead_letter_topic("{topic}.dead", "order"), "order.dead");
        assert_eq!(dead_letter_topic("{topic}.dead", "or dér"), "or_d_r.dead");
        assert_eq!(dead_letter_topic("dead", "order"), "dead");
        for topic in ["ü".repeat(300), ".".into(), String::new()] {
            let dead = dead_letter_topic("{topic}.dead", &topic);
            assert!(crate::event::check_topic_name(&dead).is_ok(), "{dead}");
        }
    }
}
