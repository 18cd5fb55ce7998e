//! The publisher with a broker that never answers, so that no record is acknowledged.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::*;
use crate::{
    kafka::{Settings, Value},
    postgres::DatabaseSettings,
    relay::{OnUndeliverable, leadership::relay_store::Registered, row::native::Fault},
};

/// Keys of the two partitions of each topic.
fn keys() -> [&'static str; 2] {
    let ids = ["1", "2", "3", "4", "5", "6", "7", "8"];
    [0, 1].map(|partition| {
        let id = ids
            .into_iter()
            .find(|id| partition_of(id.as_bytes(), 2) == partition);
        id.expect("eight keys reach both partitions")
    })
}

/// Returns a publisher that knows the topic `orders` and its dead letter topic.
fn publisher() -> EventPublisher {
    let database = DatabaseSettings::parse("postgres://localhost/none").expect("an address");
    let kafka = Settings {
        brokers: "127.0.0.1:1".into(),
        ..Settings::default()
    };
    let mut options = RelayOptions::new(database, kafka);
    options.topic = "orders".into();
    options.undeliverable.policy = OnUndeliverable::DeadLetter;
    let observer = RelayMetrics::new(Duration::from_secs(60));
    let stamps = (Clock::showing(0), Stamping::Own);
    let mut publisher = EventPublisher::open(&options, "/test", &observer, 1_000_000, &[], stamps)
        .expect("a producer");
    for topic in ["orders", "orders.dead"] {
        publisher.routes.learn(topic.into(), 2);
    }
    publisher
}

fn row(seq: i64, aggregate_id: &str) -> Row<'_> {
    Row {
        seq,
        event: Outgoing {
            id: uuid::Uuid::now_v7(),
            aggregate_type: "order",
            aggregate_id,
            event_type: "Placed",
            version: 1,
            value: Value::Tombstone,
            headers: "{}",
            occurred_at: 0,
            topic: None,
        },
        committed_at: None,
        fault: None,
    }
}

/// Publishes rows in their order. Returns the outcome of each as a word.
fn outcomes<'r>(
    publisher: &mut EventPublisher,
    rows: impl IntoIterator<Item = Row<'r>>,
) -> Vec<String> {
    let publish = |row: Row<'_>| match publisher.publish(&row) {
        Ok(Published::Sent(_)) => "sent".to_owned(),
        Err(Unsent::Waits(reason)) => format!("{reason:?}"),
        other => format!("unexpected: {other:?}"),
    };
    rows.into_iter().map(publish).collect()
}

#[tokio::test]
async fn the_second_record_of_a_partition_waits_until_the_first_is_acknowledged() {
    let [first, second] = keys();
    let rows = [row(1, first), row(2, first), row(3, second)];
    assert_eq!(
        outcomes(&mut publisher(), rows),
        ["sent", "FirstContact", "sent"]
    );
}

#[tokio::test]
async fn the_second_dead_letter_of_a_partition_waits_until_the_first_is_acknowledged() {
    let [first, second] = keys();
    let bad = |seq, id| Row {
        committed_at: None,
        fault: Some(Fault {
            column: "payload",
            problem: "null",
        }),
        ..row(seq, id)
    };
    let rows = [bad(1, first), bad(2, first), bad(3, second)];
    assert_eq!(
        outcomes(&mut publisher(), rows),
        ["sent", "FirstContact", "sent"]
    );
}

#[tokio::test]
async fn a_suspect_is_sent_while_nothing_is_in_flight_and_nothing_is_sent_beside_it() {
    let [first, second] = keys();
    let mut suspect_last = publisher();
    suspect_last.isolation.suspect(2);
    let rows = [row(1, first), row(2, second)];
    assert_eq!(outcomes(&mut suspect_last, rows), ["sent", "Alone"]);
    let mut suspect_first = publisher();
    suspect_first.isolation.suspect(1);
    let rows = [row(1, first), row(2, second)];
    assert_eq!(outcomes(&mut suspect_first, rows), ["sent", "Alone"]);
}

/// A command that grows the topic counts on the stored number.
#[tokio::test]
async fn nothing_is_sent_to_a_new_topic_before_its_number_of_partitions_is_stored() {
    let mut publisher = publisher();
    let at_first = || Row {
        event: Outgoing {
            topic: Some("new"),
            ..row(1, "1").event
        },
        ..row(1, "1")
    };
    assert_eq!(
        outcomes(&mut publisher, [at_first()]),
        ["NewTopic(\"new\")"]
    );
    publisher.looked(topic_lookup::Looked {
        topic: "new".into(),
        answer: Ok(4),
        survey: None,
    });
    assert_eq!(
        outcomes(&mut publisher, [at_first()]),
        ["Unregistered(\"new\")"]
    );
    assert_eq!(publisher.unregistered().get("new"), Some(&4));
    let registered = |topic: &str, held| Registered {
        topic: topic.to_owned(),
        partitions: 3,
        held,
    };
    publisher.registered(registered("new", None));
    assert_eq!(outcomes(&mut publisher, [at_first()]), ["sent"]);
    let (_, route) = publisher.routes.named("new").expect("it is known");
    assert_eq!(route.partitions, 3, "the stored number");
    assert!(publisher.unregistered().is_empty());

    // The relay takes part in the hold of a command.
    let held = Some(Duration::from_secs(60));
    publisher.looked(topic_lookup::Looked {
        topic: "other".into(),
        answer: Ok(4),
        survey: None,
    });
    publisher.registered(registered("other", held));
    let other = Row {
        event: Outgoing {
            topic: Some("other"),
            ..row(2, "1").event
        },
        ..row(2, "1")
    };
    assert_eq!(outcomes(&mut publisher, [other]), ["Growing(\"other\")"]);
}

/// Each topic alone would cost a request and a transaction.
#[tokio::test]
async fn new_topics_of_the_next_events_are_met_together_if_a_list_has_them() {
    let mut publisher = publisher();
    let to = |topic| Outgoing {
        topic: Some(topic),
        ..row(1, "1").event
    };
    assert!(publisher.meets_topics(), "at the start");
    let topics: BTreeSet<String> = ["a", "b", "not-there", "a", "__x"]
        .into_iter()
        .filter_map(|topic| publisher.new_topic(&to(topic)))
        .collect();
    assert_eq!(
        topics,
        BTreeSet::from(["a", "b", "not-there"].map(String::from))
    );
    publisher.looked(topic_lookup::Looked {
        topic: "a".into(),
        answer: Ok(4),
        survey: Some(HashMap::from([("a".to_owned(), 4), ("b".to_owned(), 2)])),
    });
    publisher.meet(&topics);
    let unregistered = HashMap::from([("a".to_owned(), 4), ("b".to_owned(), 2)]);
    assert_eq!(*publisher.unregistered(), unregistered);
    assert!(publisher.meets_topics());
    publisher.meet(&BTreeSet::new());
    assert!(!publisher.meets_topics());
}

/// Otherwise each page would ask Kafka about topics whose events are parked anyway.
#[tokio::test]
async fn no_further_topic_is_looked_up_once_the_relay_tracks_as_many_unusable_ones_as_it_may() {
    let mut publisher = publisher();
    let faults = &mut publisher.lookup.faults;
    let mut names = (0..).map(|n| format!("unusable-{n}"));
    while faults.has_room() {
        let name = names.next().expect("endless");
        faults.found(&name, "does not exist".into());
    }
    let to = |topic| Outgoing {
        topic: Some(topic),
        ..row(1, "1").event
    };
    for topic in ["new", "unusable-7"] {
        assert_eq!(publisher.new_topic(&to(topic)), None, "{topic}");
    }
    let Ok(Attempt::Impossible(reason)) = publisher.unrouted("new".into(), true) else {
        panic!("its events are parked");
    };
    assert!(
        reason.contains("the maximum number of unusable topics"),
        "{reason}"
    );
}
