//! Reports of event types without a handler in the group, once per type and topic.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use crate::{
    kafka::Message,
    subscriber::{attempt::Runner, telemetry::statistics::shown_type},
};

/// Maximum number of reported types, because the producers of a topic can use any number of types.
const REPORTED_MAX: usize = 100;

/// Minimum similarity (Jaro-Winkler) of a handled type that is named as the type that may be meant.
const ALIKE: f64 = 0.85;

/// Types that were reported, by topic.
#[derive(Debug, Default)]
pub(crate) struct UnknownTypes(Mutex<HashMap<String, HashSet<String>>>);

impl UnknownTypes {
    fn is_first(&self, topic: &str, event_type: &str) -> bool {
        let mut reported = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reported
            .get(topic)
            .is_some_and(|types| types.contains(event_type))
        {
            return false;
        }
        let room = reported.values().map(HashSet::len).sum::<usize>() < REPORTED_MAX;
        room && reported
            .entry(topic.to_owned())
            .or_default()
            .insert(event_type.to_owned())
    }
}

impl Runner {
    /// Counts an event or a tombstone without a handler. Logs the first of its kind and topic.
    pub(crate) fn unknown(&self, message: &Message) {
        let (topic, kind) = (&*message.as_it_came().topic, message.kind());
        self.statistics.unknown(kind);
        let kind = shown_type(kind);
        if kind.is_empty() || !self.unknown_types.is_first(topic, kind) {
            return;
        }
        if message.is_tombstone() {
            tracing::info!(
                subscriber = self.name,
                topic,
                kind,
                "tombstones without a handler are skipped; this is logged once for each aggregate \
                 and topic"
            );
            return;
        }
        let event_type = kind;
        let handled = self.core.router.types();
        tracing::info!(
            subscriber = self.name,
            topic,
            event.r#type = event_type,
            similar = nearest(event_type, &handled),
            "events of a type without a handler are skipped; this is logged once for each type and \
             topic"
        );
    }
}

/// Returns the most similar handled type, if one is similar enough.
fn nearest<'t>(event_type: &str, handled: &'t [String]) -> Option<&'t str> {
    let wanted = event_type.to_lowercase();
    let likeness = |known: &String| strsim::jaro_winkler(&known.to_lowercase(), &wanted);
    let alike = handled
        .iter()
        .map(|known| (likeness(known), known.as_str()))
        .filter(|(likeness, _)| *likeness > ALIKE);
    alike
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_reported_once_a_topic_and_the_number_of_reports_is_bounded() {
        let unknown = UnknownTypes::default();
        assert!(unknown.is_first("order", "OrderPlacd"));
        assert!(!unknown.is_first("order", "OrderPlacd"));
        assert!(unknown.is_first("stock", "OrderPlacd"));
        let reported = (0..2 * REPORTED_MAX)
            .filter(|n| unknown.is_first("order", &format!("T{n}")))
            .count();
        assert_eq!(reported, REPORTED_MAX - 2);
    }

    #[test]
    fn the_handled_type_that_is_most_alike_is_named() {
        let handled = ["OrderCancelled", "OrderPlaced"].map(str::to_owned);
        for typo in ["OrderPlacd", "orderplaced", "OrderPlaced2", "OrdrePlaced"] {
            assert_eq!(nearest(typo, &handled), Some("OrderPlaced"), "{typo}");
        }
        assert_eq!(nearest("InvoicePaid", &handled), None);
        assert_eq!(nearest("InvoicePaid", &[]), None);
    }
}
