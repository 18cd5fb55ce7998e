//! The Kafka rights that `tidings grants relay` prints are sufficient, and each of them is needed.

use dev_services::{Acl, AclOperation, AclResource, Kafka};
use tidings::relay::{DeliveryGuarantee, OnUndeliverable, RelayOptions};

use super::operator::insert;
use crate::support::eventually::until_number;
use crate::support::records::{Reader, create_topic};
use crate::support::rights::{Rights, guarded_kafka, settings_of};
use crate::support::running::{Place, Running};
use crate::support::services::{TestDatabase, migrated_database};

/// The user of the relay.
const USER: &str = "relay";

/// A broker that grants the relay's principal only the rights that the test adds.
struct Guarded {
    kafka: Kafka,
    database: TestDatabase,
    place: Place,
    options: RelayOptions,
    rights: Rights,
}

async fn guarded(delivery: DeliveryGuarantee, settings: &[&str]) -> Guarded {
    let kafka = guarded_kafka(&[USER]).await;
    let database = migrated_database().await;
    let place = Place {
        brokers: kafka.brokers(),
        ..Place::new(&database)
    };
    let mut options = RelayOptions {
        delivery,
        ..place.options()
    };
    options.topics.create = false;
    options.kafka = settings_of(USER, &kafka);
    let word = match delivery {
        DeliveryGuarantee::AtLeastOnce => "at-least-once",
        _ => "exactly-once",
    };
    let arguments = [
        "relay",
        &place.topic,
        "--name",
        &place.name,
        "--delivery",
        word,
    ];
    let rights = Rights::of_role(&database, USER, &[&arguments[..], settings].concat());
    Guarded {
        kafka,
        database,
        place,
        options,
        rights,
    }
}

impl Guarded {
    fn allow(&self, acl: &Acl) {
        self.kafka.create_acl(acl).expect("the entry is added");
    }

    fn forbid(&self, acl: &Acl) {
        self.kafka.delete_acl(acl).expect("the entry is removed");
    }

    /// Creates the topic and grants all rights.
    async fn prepare(&self) {
        create_topic(&self.place.brokers, &self.place.topic, 1).await;
        self.rights.allow(&self.kafka);
    }
}

/// Returns the part of a resource's name that a message contains.
fn named(acl: &Acl) -> &str {
    match acl.resource {
        AclResource::TransactionalId => "tidings.relay.",
        _ => &acl.name,
    }
}

async fn each_right_is_needed_and_all_are_enough(delivery: DeliveryGuarantee) {
    let guarded = guarded(delivery, &[]).await;
    let (place, options) = (&guarded.place, &guarded.options);
    // With all rights the relay works. Without any single one it publishes nothing and names the
    // resource in its check.
    let pool = &guarded.database.pool;
    insert(pool, 1..=1).await;
    guarded.prepare().await;
    let mut reader = place.reader();
    let relay = Running::start(options.clone());
    reader.until_distinct(1);
    relay.stop().await;
    let mut published = 1;
    // The topic of positions exists now, so the right to create it is not needed any more.
    let acls = guarded.rights.acls.iter();
    for acl in acls.filter(|acl| acl.operation != AclOperation::Create) {
        guarded.forbid(acl);
        published += 1;
        insert(pool, published..=published).await;
        let relay = Running::start(options.clone());
        relay.says("kafka", named(acl)).await;
        assert_eq!(
            reader.read_to_the_end().len() as i64,
            published - 1,
            "without {acl:?}"
        );
        guarded.allow(acl);
        reader.until_distinct(usize::try_from(published).expect("the number fits"));
        relay.stop().await;
    }
    assert_eq!(reader.read_to_the_end().len() as i64, published);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_delivers_exactly_once_needs_exactly_the_documented_rights_in_kafka() {
    each_right_is_needed_and_all_are_enough(DeliveryGuarantee::ExactlyOnce).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_delivers_at_least_once_needs_exactly_the_documented_rights_in_kafka() {
    each_right_is_needed_and_all_are_enough(DeliveryGuarantee::AtLeastOnce).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_needs_the_right_to_create_each_topic_that_does_not_exist() {
    let mut guarded = guarded(DeliveryGuarantee::ExactlyOnce, &["--create-topics"]).await;
    guarded.options.topics.create = true;
    guarded.rights.allow(&guarded.kafka);
    insert(&guarded.database.pool, 1..=1).await;
    let creates = guarded.rights.acls.iter();
    let creates: Vec<_> = creates
        .filter(|acl| acl.operation == AclOperation::Create)
        .collect();
    // The position topic and the topic of the events.
    assert_eq!(creates.len(), 2, "{creates:?}");
    creates.iter().for_each(|acl| guarded.forbid(acl));
    let refusal = Running::start(guarded.options.clone()).refusal().await;
    assert!(refusal.contains("tidings.position."), "{refusal}");
    let (position, events): (Vec<&Acl>, Vec<&Acl>) = creates
        .iter()
        .partition(|acl| acl.name.starts_with("tidings.position."));
    position.iter().for_each(|acl| guarded.allow(acl));
    let relay = Running::start(guarded.options.clone());
    relay.says("kafka", &guarded.place.topic).await;
    events.iter().for_each(|acl| guarded.allow(acl));
    guarded.place.reader().until_distinct(1);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_of_a_relay_needs_the_right_to_write_its_topic() {
    let policy = ["--on-undeliverable", "dead-letter"];
    let mut guarded = guarded(DeliveryGuarantee::ExactlyOnce, &policy).await;
    guarded.options.undeliverable.policy = OnUndeliverable::DeadLetter;
    let dead = format!("{}.dead", guarded.place.topic);
    create_topic(&guarded.place.brokers, &dead, 1).await;
    guarded.prepare().await;
    let acls = guarded.rights.acls.iter();
    let letters: Vec<_> = acls.filter(|acl| acl.name == dead).collect();
    assert_eq!(letters.len(), 1, "{letters:?}");
    guarded.forbid(letters[0]);
    // An event that is larger than the relay accepts.
    let sql = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
        values ('order', '1', 'T', to_jsonb(repeat('x', 2000000)))";
    sqlx::raw_sql(sql)
        .execute(&guarded.database.pool)
        .await
        .expect("the insert succeeds");
    let relay = Running::start(guarded.options.clone());
    relay.says("kafka", &dead).await;
    guarded.allow(letters[0]);
    Reader::new(&guarded.place.brokers, &dead).until_distinct(1);
    relay.stop().await;
}

async fn a_right_that_is_revoked_stops_events_until_it_is_given_back(delivery: DeliveryGuarantee) {
    let guarded = guarded(delivery, &[]).await;
    let pool = &guarded.database.pool;
    guarded.prepare().await;
    let mut reader = guarded.place.reader();
    let (relay, mut published) = (Running::start(guarded.options.clone()), 1);
    insert(pool, 1..=1).await;
    reader.until_distinct(1);
    // The other rights are needed only at the start.
    let acls = guarded.rights.acls.iter();
    for acl in acls.filter(|acl| acl.operation == AclOperation::Write) {
        guarded.forbid(acl);
        published += 1;
        insert(pool, published..=published).await;
        relay.says("kafka", named(acl)).await;
        guarded.allow(acl);
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
    a_right_that_is_revoked_stops_events_until_it_is_given_back(DeliveryGuarantee::ExactlyOnce)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_revoked_while_a_relay_delivers_at_least_once_stops_it_with_a_message_until_it_is_back()
 {
    a_right_that_is_revoked_stops_events_until_it_is_given_back(DeliveryGuarantee::AtLeastOnce)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_may_be_described_and_not_written_stops_its_own_events_until_it_may() {
    for delivery in [
        DeliveryGuarantee::ExactlyOnce,
        DeliveryGuarantee::AtLeastOnce,
    ] {
        let mut guarded = guarded(delivery, &[]).await;
        let base = guarded.place.topic.clone();
        let topic = |kind: &str| format!("{base}-{kind}");
        guarded.options.topic = topic("{aggregatetype}");
        let right = |kind, operation| Acl {
            resource: AclResource::Topic,
            name: topic(kind),
            prefixed: false,
            principal: format!("User:{USER}"),
            operation,
            allow: true,
        };
        for kind in ["good", "poor"] {
            create_topic(&guarded.place.brokers, &topic(kind), 1).await;
        }
        guarded.prepare().await;
        guarded.allow(&right("good", AclOperation::Write));
        guarded.allow(&right("poor", AclOperation::Describe));
        let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
                      select kind, 'a', 'T', json_build_object('n', n) \
                      from generate_series(1, 3) n, unnest(array['poor', 'good']) kind";
        sqlx::raw_sql(insert)
            .execute(&guarded.database.pool)
            .await
            .expect("the insert succeeds");
        let relay = Running::start(guarded.options.clone());
        let brokers = &guarded.place.brokers;
        Reader::new(brokers, &topic("good")).until_distinct(3);
        let waiting = "select count(*) from tidings.parked where waits_for like '%-poor'";
        let pool = &guarded.database.pool;
        until_number(pool, "its events are parked", waiting, |events| events >= 3).await;
        guarded.allow(&right("poor", AclOperation::Write));
        let mut poor = Reader::new(brokers, &topic("poor"));
        poor.until_distinct(3);
        relay.stop().await;
        assert_eq!(
            super::parked::numbers(poor.read_to_the_end(), "a"),
            [1, 2, 3]
        );
    }
}
