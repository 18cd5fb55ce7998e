//! Checks of the pauses and the parked events of the subscribers whose inbox is in this database.

use super::Findings;
use crate::inspect::{
    Database,
    subscribers::{ParkedTopic, PauseRow, parked_topics, pauses},
};

/// Adds findings about pauses and parked events. Adds none if the role may not read the tables.
pub(super) async fn look(database: &Database, findings: &mut Findings) {
    if let Ok(paused) = pauses(database).await {
        judge_pauses(&paused, findings);
    }
    if let Ok(parked) = parked_topics(database).await {
        judge(&parked, findings);
    }
}

fn judge_pauses(paused: &[PauseRow], findings: &mut Findings) {
    for PauseRow(consumer, pause) in paused {
        let (since, by) = (crate::inspect::units::utc(pause.since), &pause.by);
        let reason = pause.reason.as_deref().unwrap_or("no reason given");
        findings.warn(
            "subscribers",
            format!("{consumer} is paused since {since} by {by}: {reason}"),
            format!("resume it with `tidings subscribers resume {consumer}`"),
        );
    }
}

fn judge(parked: &[(String, ParkedTopic)], findings: &mut Findings) {
    for (consumer, parked) in parked {
        let ParkedTopic {
            topic,
            events,
            aggregates,
            runs,
            is_read,
        } = parked;
        let waiting = format!(
            "{consumer}: {events} parked events of {aggregates} aggregates of topic {topic}"
        );
        match (runs, is_read) {
            (_, true) => findings.ok("subscribers", waiting),
            (true, false) => findings.warn(
                "subscribers",
                format!("{waiting} are not handled: no running instance subscribes to the topic"),
                format!(
                    "run a version of {consumer} that subscribes to {topic} \
                     until these events are handled"
                ),
            ),
            (false, _) => findings.warn(
                "subscribers",
                format!("{waiting} wait: no instance of the subscriber is running"),
                format!("start {consumer}"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn a_paused_subscriber_is_a_warning_with_its_remedy() {
        let pause = crate::inspect::subscribers::SubscriberPause {
            since: chrono::DateTime::UNIX_EPOCH,
            reason: Some("a migration".into()),
            by: "ada".into(),
        };
        let mut findings = Findings::of("postgres");
        judge_pauses(&[PauseRow("stock".into(), pause)], &mut findings);
        let found = &findings.list[0];
        assert_eq!(found.state, State::Warn);
        assert!(
            found
                .text
                .contains("stock is paused since 1970-01-01 00:00:00Z by ada: a migration"),
            "{}",
            found.text
        );
        let remedy = found.remedy.as_deref();
        assert!(remedy.is_some_and(|text| text.contains("subscribers resume stock")));
    }

    #[test]
    fn parked_events_that_no_instance_handles_are_a_warning() {
        let parked = |runs, is_read| {
            let topic = ParkedTopic {
                topic: "order".into(),
                events: 3,
                aggregates: 2,
                runs,
                is_read,
            };
            ("stock".to_owned(), topic)
        };
        for (runs, is_read, state) in [
            (true, true, State::Ok),
            (true, false, State::Warn),
            (false, false, State::Warn),
        ] {
            let mut findings = Findings::of("postgres");
            judge(&[parked(runs, is_read)], &mut findings);
            let found = &findings.list[0];
            assert_eq!(
                (found.state, found.remedy.is_some()),
                (state, state == State::Warn)
            );
            assert!(
                found
                    .text
                    .contains("stock: 3 parked events of 2 aggregates of topic order"),
                "{}",
                found.text
            );
        }
    }
}
