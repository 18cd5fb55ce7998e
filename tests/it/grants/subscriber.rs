//! A subscriber with an inbox, and one with retry topics.

use std::time::Duration;

use dev_services::{Acl, AclOperation, Kafka};
use rdkafka::admin::{AdminOptions, ConfigSource, ResourceSpecifier};
use tidings::subscriber::{
    Escalation, Event, HandlerError, Meta, Retry, RunError, Statistics, SubscriberState, Tx,
};
use tidings::{Bus, Subscriber};
use tokio_util::sync::CancellationToken;

use crate::support::place::{
    Changed, PATIENCE, Place, create_effects, effect, effects, start, until, until_effects,
};
use crate::support::records::{admin, create_topic, create_topic_with};
use crate::support::rights::{Rights, guarded_kafka, settings_of};
use crate::support::services::{TestDatabase, migrated_database};

/// The user of the subscriber.
const USER: &str = "inventory";

/// Time in which a subscriber with all rights handles an event. A subscriber that lacks one handles
/// none in it.
const LONG_ENOUGH: Duration = Duration::from_secs(3);

/// Handles events, except the second version of an account, which becomes a dead letter.
async fn handle(
    Event(changed): Event<Changed>,
    meta: Meta,
    mut tx: Tx,
) -> Result<(), HandlerError> {
    match changed.version {
        2 => Err(HandlerError::dead_letter("the second version")),
        _ => effect(&mut tx, &changed, &meta).await,
    }
}

/// A subscriber on a broker that enforces rights.
struct Guarded {
    kafka: Kafka,
    database: TestDatabase,
    place: Place,
    bus: Bus,
    rights: Rights,
}

impl Guarded {
    async fn new(arguments: &[&str]) -> Self {
        let kafka = guarded_kafka(&[USER]).await;
        let database = migrated_database().await;
        create_effects(&database.pool).await;
        let place = Place::on(kafka.brokers(), 1).await;
        let own = ["subscriber", &place.topic, "--group", &place.group];
        let rights = Rights::of_role(&database, USER, &[&own[..], arguments].concat());
        Self {
            bus: Bus::new(settings_of(USER, &kafka)),
            kafka,
            database,
            place,
            rights,
        }
    }

    fn subscriber(&self) -> Subscriber<()> {
        let subscriber = self.bus.subscriber(&self.place.group);
        subscriber.topic::<Changed>(&self.place.topic)
    }

    /// Returns the entry for a topic or group whose name ends with `suffix`.
    fn acl(&self, suffix: &str, operation: AclOperation) -> &Acl {
        let all = &self.rights.acls;
        all.iter()
            .find(|acl| acl.name.ends_with(suffix) && acl.operation == operation)
            .unwrap_or_else(|| panic!("{operation:?} on *{suffix}: {all:?}"))
    }

    fn allow(&self, acl: &Acl) {
        self.kafka.create_acl(acl).expect("the entry is added");
    }

    fn forbid(&self, acl: &Acl) {
        self.kafka.delete_acl(acl).expect("the entry is removed");
    }

    /// Publishes the next version, which is not handled without the right and is with it.
    async fn handles_only_with(&self, acl: &Acl, version: i32) {
        self.forbid(acl);
        let before = effects(&self.database.pool).await;
        let running = start!(
            self.subscriber()
                .on(handle)
                .inbox(self.database.pool.clone())
        );
        self.place.publish(1, version..=version).await;
        tokio::time::sleep(LONG_ENOUGH).await;
        assert_eq!(
            effects(&self.database.pool).await,
            before,
            "without {acl:?}"
        );
        self.allow(acl);
        until_effects(&self.database.pool, before + 1).await;
        running.stop().await;
    }

    /// Returns the size limit that is set on a topic itself.
    async fn own_limit(&self, topic: &str) -> Option<String> {
        let resource = ResourceSpecifier::Topic(topic);
        let answer = admin(&self.place.brokers)
            .describe_configs([&resource], &AdminOptions::new())
            .await
            .expect("the broker answers")
            .remove(0)
            .expect("the topic exists");
        let entry = answer.get("max.message.bytes").expect("the setting");
        let value = entry.value.clone();
        value.filter(|_| entry.source == ConfigSource::DynamicTopic)
    }

    fn letters(&self) -> String {
        format!("{}.{}.dlt", self.place.topic, self.place.group)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_needs_exactly_the_printed_grants() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    let arguments = ["subscriber", &place.topic, "--group", &place.group];
    let rights = Rights::of(&database, &arguments);
    rights.grant(&database.pool).await;
    let effect = format!("grant insert on effect to {}", rights.role);
    sqlx::raw_sql(sqlx::AssertSqlSafe(effect))
        .execute(&database.pool)
        .await
        .expect("the table of the handler");
    let pool = database.pool_as(&rights.role).await;
    place.publish(2, 1..=2).await;
    let running = start!(place.subscriber::<()>().on(handle).inbox(pool.clone()));
    running
        .until("one is handled, one is dead", |seen| {
            seen.handled() == 2 && seen.dead_lettered() == 2
        })
        .await;
    running.stop().await;
    let tables = rights.sql.iter();
    for right in tables.filter(|right| !right.object.starts_with("database")) {
        right.revoke(&database.pool).await;
        let subscriber = place.subscriber::<()>().on(handle).inbox(pool.clone());
        let ended = tokio::time::timeout(PATIENCE, subscriber.run(CancellationToken::new()));
        let ended = ended.await.expect("it does not run");
        assert!(
            matches!(ended, Err(RunError::Settings(_))),
            "without {right:?}: {ended:?}"
        );
        right.grant(&database.pool).await;
    }
    drop(pool);
    rights.drop_role(&database.pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_needs_each_printed_right_to_read_and_to_send_dead_letters() {
    let guarded = Guarded::new(&[]).await;
    let (pool, place) = (&guarded.database.pool, &guarded.place);
    let limit = [("max.message.bytes", "3000000")];
    crate::support::records::alter_topic(&place.brokers, &place.topic, &limit).await;
    guarded.rights.allow(&guarded.kafka);
    let group = guarded.acl(&place.group, AclOperation::Read);
    guarded.handles_only_with(group, 1).await;
    let topic = guarded.acl(&place.topic, AclOperation::Read);
    guarded.handles_only_with(topic, 3).await;

    // A dead letter needs its topic, and the topic has the size limit of the original one.
    let (create, write) = (
        guarded.acl(".dlt", AclOperation::Create),
        guarded.acl(".dlt", AclOperation::Write),
    );
    // Without one of these rights the letter is not sent, and the subscriber reports an outage or a
    // refusal.
    let is_stuck = |seen: &Statistics| {
        seen.state() == SubscriberState::PausedByOutage || seen.refused_letters() > 0
    };
    let subscriber = || {
        let subscriber = guarded.subscriber().on(handle).inbox(pool.clone());
        subscriber.retry(Retry::never())
    };
    guarded.forbid(create);
    place.publish(1, 2..=2).await;
    let running = start!(subscriber());
    running.until("the topic is not created", is_stuck).await;
    assert_eq!(running.statistics.dead_lettered(), 0);
    running.stop().await;
    guarded.allow(create);
    guarded.forbid(write);
    create_topic_with(&place.brokers, &guarded.letters(), 1, &limit).await;
    make_due(pool).await;
    let running = start!(subscriber());
    running.until("the letter is not written", is_stuck).await;
    assert_eq!(running.statistics.dead_lettered(), 0);
    running.stop().await;
    guarded.allow(write);
    make_due(pool).await;
    let running = start!(subscriber());
    running
        .until("the letter is sent", |seen| seen.dead_lettered() == 1)
        .await;
    running.stop().await;
}

/// Makes parked events due at once.
async fn make_due(pool: &sqlx::PgPool) {
    sqlx::query("update tidings.subscriber_parked set next_attempt_at = now()")
        .execute(pool)
        .await
        .expect("the statement succeeds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_topic_has_the_size_limit_that_only_describe_configs_shows() {
    for is_allowed in [true, false] {
        let guarded = Guarded::new(&[]).await;
        let place = &guarded.place;
        let limit = [("max.message.bytes", "3000000")];
        crate::support::records::alter_topic(&place.brokers, &place.topic, &limit).await;
        guarded.rights.allow(&guarded.kafka);
        let describe = guarded.acl(&place.topic, AclOperation::DescribeConfigs);
        if !is_allowed {
            guarded.forbid(describe);
        }
        place.publish(1, 2..=2).await;
        let inbox = guarded.database.pool.clone();
        let running = start!(guarded.subscriber().on(handle).inbox(inbox));
        running
            .until("the letter is sent", |seen| seen.dead_lettered() == 1)
            .await;
        running.stop().await;
        let limit = guarded.own_limit(&guarded.letters()).await;
        assert_eq!(limit.is_some(), is_allowed, "{limit:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_letters_reach_a_subscriber_that_may_read_its_redrive_topic() {
    let guarded = Guarded::new(&[]).await;
    let place = &guarded.place;
    guarded.rights.allow(&guarded.kafka);
    let read = guarded.acl(".redrive", AclOperation::Read);
    guarded.forbid(read);
    create_topic(&place.brokers, &read.name, 1).await;
    let event = place.envelope(&Changed {
        account: "a0".into(),
        version: 1,
    });
    let mut replayed = event.clone();
    replayed.topic = Some(read.name.clone());
    place.send(&[replayed]).await;
    let inbox = guarded.database.pool.clone();
    let running = start!(guarded.subscriber().on(handle).inbox(inbox));
    tokio::time::sleep(LONG_ENOUGH).await;
    assert_eq!(effects(&guarded.database.pool).await, 0, "without {read:?}");
    guarded.allow(read);
    until_effects(&guarded.database.pool, 1).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_topics_need_the_right_to_create_write_and_read_them() {
    async fn second_time(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        match meta.attempt() {
            1 => Err(HandlerError::retry("the first time")),
            _ => effect(&mut tx, &changed, &meta).await,
        }
    }
    let guarded = Guarded::new(&["--retry-topics"]).await;
    let (pool, place) = (&guarded.database.pool, &guarded.place);
    guarded.rights.allow(&guarded.kafka);
    let start = || {
        let subscriber = guarded.subscriber().on(second_time).inbox(pool.clone());
        let delays = Escalation::retry_topics([Duration::from_millis(100)]);
        start!(subscriber.retry(Retry::never()).escalation(delays))
    };
    let create = guarded.acl(".retry.", AclOperation::Create);
    guarded.forbid(create);
    let running = start();
    until("the topic cannot be created", async || {
        let reason = running.statistics.reason().unwrap_or_default();
        reason
            .contains("a retry topic cannot be created")
            .then_some(())
    })
    .await;
    guarded.allow(create);
    place.publish(1, 1..=1).await;
    until_effects(pool, 1).await;
    running.stop().await;
    for (operation, version) in [(AclOperation::Read, 2), (AclOperation::Write, 3)] {
        let acl = guarded.acl(".retry.", operation);
        guarded.forbid(acl);
        let running = start();
        place.publish(1, version..=version).await;
        tokio::time::sleep(LONG_ENOUGH).await;
        assert_eq!(
            effects(pool).await,
            i64::from(version) - 1,
            "without {acl:?}"
        );
        guarded.allow(acl);
        until_effects(pool, version.into()).await;
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_without_an_inbox_needs_nothing_in_the_database() {
    let database = migrated_database().await;
    let arguments = ["subscriber", "order", "--group", "g", "--no-inbox"];
    let rights = Rights::of(&database, &arguments);
    assert_eq!(rights.sql, []);
}
