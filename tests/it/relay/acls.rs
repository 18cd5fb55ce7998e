//! The Kafka rights documented in docs/operating.md are sufficient, and each of them is required.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use dev_services::{Kafka, KafkaOptions};
use tidings::relay::{DeliveryGuarantee, RelayOptions};

use super::operator::insert;
use crate::support::eventually::until_number;
use crate::support::records::{Reader, create_topic};
use crate::support::running::{Place, Running};
use crate::support::services::{TestDatabase, migrated_database, own_kafka};

/// One allowed operation on resources of one kind, selected by name or prefix. The numbers are
/// those of the Kafka protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Right {
    kind: u8,
    name: String,
    prefixed: bool,
    operation: u8,
}

/// Returns the rights in the documented block that begins with `# title`, one per operation.
fn documented(title: &str, topic: &str) -> Vec<Right> {
    let page = include_str!("../../../docs/operating.md");
    let block = page
        .split("```sh\n")
        .skip(1)
        .find(|block| block.starts_with(&format!("# {title}")))
        .expect("the page has the block");
    let block = block.split("```").next().expect("the process ends");
    let mut rights = Vec::new();
    for line in block
        .lines()
        .filter(|line| line.starts_with("kafka-acls.sh"))
    {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |option: &'static str| given(&words, option);
        let (kind, name) = match (after("--topic").next(), after("--transactional-id").next()) {
            (Some("order"), _) => (2, topic),
            (Some(name), _) => (2, name),
            (None, Some(name)) => (5, name),
            (None, None) => panic!("unexpected resource: {line}"),
        };
        let prefixed = after("--resource-pattern-type").next() == Some("prefixed");
        let operation = |word| match word {
            "Read" => 3,
            "Write" => 4,
            "Create" => 5,
            other => panic!("unexpected operation: {other}"),
        };
        rights.extend(after("--operation").map(|word| Right {
            kind,
            name: name.to_owned(),
            prefixed,
            operation: operation(word),
        }));
    }
    assert!(!rights.is_empty(), "{block}");
    rights
}

/// Returns every value that is given with an option.
fn given<'w>(words: &'w [&'w str], option: &'static str) -> impl Iterator<Item = &'w str> {
    words
        .windows(2)
        .filter(move |pair| pair[0] == option)
        .map(|pair| pair[1])
}

/// Sends a `CreateAcls` or `DeleteAcls` request, version 1, to a broker without authentication.
fn ask(brokers: &str, api: i16, right: &Right) {
    let text = |text: &str| {
        [
            &i16::try_from(text.len())
                .expect("the length fits")
                .to_be_bytes()[..],
            text.as_bytes(),
        ]
        .concat()
    };
    let pattern = if right.prefixed { 4 } else { 3 };
    let resource = [vec![right.kind], text(&right.name), vec![pattern]].concat();
    let allowed = [text("User:relay"), text("*"), vec![right.operation, 3]].concat();
    let header = [api.to_be_bytes(), 1i16.to_be_bytes()].concat();
    let request = [
        header,
        7i32.to_be_bytes().to_vec(),
        text("test"),
        1i32.to_be_bytes().to_vec(),
        resource,
        allowed,
    ]
    .concat();
    let mut stream = TcpStream::connect(brokers).expect("the connection succeeds");
    stream
        .write_all(
            &i32::try_from(request.len())
                .expect("the length fits")
                .to_be_bytes(),
        )
        .expect("the request is sent");
    stream.write_all(&request).expect("the request is sent");
    let mut size = [0; 4];
    stream.read_exact(&mut size).expect("the broker answers");
    let mut answer = vec![0; u32::from_be_bytes(size) as usize];
    stream.read_exact(&mut answer).expect("the broker answers");
    // The response begins with the correlation id and a throttle time. The number of results and
    // the error code of the first result follow.
    assert_eq!(
        (&answer[..4], &answer[8..14]),
        (&7i32.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0][..]),
        "{right:?}"
    );
}

fn allow(brokers: &str, right: &Right) {
    ask(brokers, 30, right);
}

fn forbid(brokers: &str, right: &Right) {
    ask(brokers, 31, right);
}

/// A broker that grants the relay's principal only the rights that the test adds.
struct Guarded {
    _kafka: Kafka,
    database: TestDatabase,
    place: Place,
    options: RelayOptions,
    rights: Vec<Right>,
}

async fn guarded(title: &str, delivery: DeliveryGuarantee) -> Guarded {
    // Clients of the second listener authenticate. They have only the rights that are granted to
    // their name.
    let options = KafkaOptions::new()
        .proxied(true)
        .set(
            "listener.security.protocol.map",
            "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:SASL_PLAINTEXT",
        )
        .set("sasl.enabled.mechanisms", "PLAIN")
        .set(
            "listener.name.proxied.plain.sasl.jaas.config",
            "org.apache.kafka.common.security.plain.PlainLoginModule required \
             user_relay=\"secret\";",
        )
        .set(
            "authorizer.class.name",
            "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        )
        .set("super.users", "User:ANONYMOUS");
    let kafka = own_kafka(options).await;
    let database = migrated_database().await;
    let place = Place {
        brokers: kafka.brokers(),
        ..Place::new(&database)
    };
    create_topic(&place.brokers, &place.topic, 1).await;
    let mut options = RelayOptions {
        delivery,
        ..place.options()
    };
    options.topics.create = false;
    options.kafka.brokers = kafka.proxied_brokers();
    for (key, value) in [
        ("security.protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanisms", "PLAIN"),
        ("sasl.username", "relay"),
        ("sasl.password", "secret"),
    ] {
        options.kafka.properties.insert(key.into(), value.into());
    }
    let rights = documented(title, &place.topic);
    Guarded {
        _kafka: kafka,
        database,
        place,
        options,
        rights,
    }
}

async fn each_right_is_needed_and_all_are_enough(title: &str, delivery: DeliveryGuarantee) {
    let Guarded {
        _kafka,
        database,
        place,
        options,
        rights,
    } = guarded(title, delivery).await;
    // With all rights the relay works. Without any single one it publishes nothing and names the
    // resource in its check.
    let mut reader = place.reader();
    insert(&database.pool, 1..=1).await;
    rights.iter().for_each(|right| allow(&place.brokers, right));
    let relay = Running::start(options.clone());
    reader.until_distinct(1);
    relay.stop().await;
    let mut published = 1;
    // The topic of positions exists now, so the right to create it (operation 5) is not needed any
    // more.
    for right in rights.iter().filter(|right| right.operation != 5) {
        forbid(&place.brokers, right);
        published += 1;
        insert(&database.pool, published..=published).await;
        let relay = Running::start(options.clone());
        let resource = if right.kind == 5 {
            "tidings.relay.".to_owned()
        } else {
            right.name.clone()
        };
        relay.says("kafka", &resource).await;
        assert_eq!(
            reader.read_to_the_end().len() as i64,
            published - 1,
            "without {right:?}"
        );
        allow(&place.brokers, right);
        reader.until_distinct(usize::try_from(published).expect("the number fits"));
        relay.stop().await;
    }
    assert_eq!(reader.read_to_the_end().len() as i64, published);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_delivers_exactly_once_needs_exactly_the_documented_rights_in_kafka() {
    each_right_is_needed_and_all_are_enough("exactly once", DeliveryGuarantee::ExactlyOnce).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_delivers_at_least_once_needs_exactly_the_documented_rights_in_kafka() {
    each_right_is_needed_and_all_are_enough("at least once", DeliveryGuarantee::AtLeastOnce).await;
}

async fn a_right_that_is_revoked_stops_events_until_it_is_given_back(
    title: &str,
    delivery: DeliveryGuarantee,
) {
    let Guarded {
        _kafka,
        database,
        place,
        options,
        rights,
    } = guarded(title, delivery).await;
    rights.iter().for_each(|right| allow(&place.brokers, right));
    let (mut reader, relay, mut published) = (place.reader(), Running::start(options), 1);
    insert(&database.pool, 1..=1).await;
    reader.until_distinct(1);
    // The other rights are needed only at the start.
    for right in rights.iter().filter(|right| right.operation == 4) {
        forbid(&place.brokers, right);
        published += 1;
        insert(&database.pool, published..=published).await;
        let resource = if right.kind == 5 {
            "tidings.relay."
        } else {
            &right.name
        };
        relay.says("kafka", resource).await;
        allow(&place.brokers, right);
        reader.until_distinct(usize::try_from(published).expect("the number fits"));
    }
    relay.stop().await;
    let delivered = reader.read_to_the_end().len() as i64;
    assert!(
        delivered == published
            || delivery == DeliveryGuarantee::AtLeastOnce && delivered > published,
        "{delivered} of {published}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_revoked_while_a_relay_delivers_exactly_once_stops_it_with_a_message_until_it_is_back()
 {
    a_right_that_is_revoked_stops_events_until_it_is_given_back(
        "exactly once",
        DeliveryGuarantee::ExactlyOnce,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_revoked_while_a_relay_delivers_at_least_once_stops_it_with_a_message_until_it_is_back()
 {
    a_right_that_is_revoked_stops_events_until_it_is_given_back(
        "at least once",
        DeliveryGuarantee::AtLeastOnce,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_may_be_described_and_not_written_stops_its_own_events_until_it_may() {
    for (title, delivery) in [
        ("exactly once", DeliveryGuarantee::ExactlyOnce),
        ("at least once", DeliveryGuarantee::AtLeastOnce),
    ] {
        let Guarded {
            _kafka,
            database,
            place,
            mut options,
            rights,
        } = guarded(title, delivery).await;
        let topic = |kind: &str| format!("{}-{kind}", place.topic);
        options.topic = topic("{aggregatetype}");
        let right = |kind, operation| Right {
            kind: 2,
            name: topic(kind),
            prefixed: false,
            operation,
        };
        for kind in ["good", "poor"] {
            create_topic(&place.brokers, &topic(kind), 1).await;
        }
        const WRITE: u8 = 4;
        const DESCRIBE: u8 = 8;
        rights
            .iter()
            .chain(&[right("good", WRITE), right("poor", DESCRIBE)])
            .for_each(|right| allow(&place.brokers, right));
        let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
                      select kind, 'a', 'T', json_build_object('n', n) \
                      from generate_series(1, 3) n, unnest(array['poor', 'good']) kind";
        sqlx::raw_sql(insert)
            .execute(&database.pool)
            .await
            .expect("the insert succeeds");
        let relay = Running::start(options);
        Reader::new(&place.brokers, &topic("good")).until_distinct(3);
        let waiting = "select count(*) from tidings.parked where waits_for like '%-poor'";
        until_number(&database.pool, "its events are parked", waiting, |events| {
            events >= 3
        })
        .await;
        allow(&place.brokers, &right("poor", WRITE));
        let mut poor = Reader::new(&place.brokers, &topic("poor"));
        poor.until_distinct(3);
        relay.stop().await;
        assert_eq!(
            super::parked::numbers(poor.read_to_the_end(), "a"),
            [1, 2, 3]
        );
    }
}
