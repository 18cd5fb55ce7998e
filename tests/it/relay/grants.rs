//! The grants that `tidings grants` prints are sufficient, and each of them is required.

use sqlx::{Connection as _, PgPool};
use tidings::{
    postgres,
    relay::{DebeziumOutbox, DeliveryGuarantee, OnUndeliverable, SourceKind},
};

use crate::support::records::create_topic;
use crate::support::rights::{Rights, revoke_defaults, run};
use crate::support::running::{Place, Running};
use crate::support::services::{TestDatabase, migrated_database};

/// Returns the rights of this place's relay.
fn rights_of(database: &TestDatabase, place: &Place, settings: &[&str]) -> Rights {
    let relay = ["relay", &place.topic, "--name", &place.name];
    Rights::of(database, &[&relay[..], settings].concat())
}

async fn relay_as(
    database: &TestDatabase,
    place: &Place,
    rights: &Rights,
    source: SourceKind,
) -> Running {
    let mut options = place.options();
    options.database = postgres::DatabaseSettings::parse(&rights.url(database)).expect("a URL");
    options.source = source;
    Running::start(options)
}

/// Returns the text of `tidings check` for a relay with these rights.
fn checked(database: &TestDatabase, place: &Place, rights: &Rights) -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(["check", "--name", &place.name, "--topic", &place.topic])
        .env_clear()
        .env("DATABASE_URL", rights.url(database))
        .env("KAFKA_BROKERS", &place.brokers)
        .output()
        .expect("the binary runs");
    String::from_utf8(output.stdout).expect("UTF-8")
}

async fn insert(pool: &PgPool, n: u32) {
    let sql = format!(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
         values ('order', '1', 'T', '{n}')"
    );
    run(pool, sql).await;
}

async fn each_grant_is_needed_and_all_are_enough(source: SourceKind, word: &str) {
    let database = migrated_database().await;
    revoke_defaults(&database).await;
    let place = Place::new(&database);
    create_topic(&place.brokers, &place.topic, 1).await;
    let rights = rights_of(&database, &place, &["--source", word]);
    rights.grant(&database.pool).await;
    insert(&database.pool, 1).await;
    let relay = relay_as(&database, &place, &rights, source).await;
    let mut reader = place.reader();
    reader.until_distinct(1);
    if source == SourceKind::Wal {
        relay.says("stream", "streaming").await;
    }
    insert(&database.pool, 2).await;
    reader.until_distinct(2);
    relay.stop().await;
    for right in &rights.sql {
        right.revoke(&database.pool).await;
        if right.privilege == "delete" && right.object == "tidings.outbox" {
            // The relay publishes without it, and warns that it cannot delete published events.
            let text = checked(&database, &place, &rights);
            assert!(
                text.contains("published events cannot be deleted"),
                "{text}"
            );
        } else {
            let relay = relay_as(&database, &place, &rights, source).await;
            let refusal = relay.refusal().await;
            assert!(
                refusal.contains("permission denied") && refusal.contains("tidings check"),
                "without {right:?}: {refusal}"
            );
        }
        right.grant(&database.pool).await;
    }
    if source == SourceKind::Wal {
        let role = &rights.role;
        run(&database.pool, format!("alter role {role} noreplication")).await;
        let relay = relay_as(&database, &place, &rights, source).await;
        let refusal = relay.refusal().await;
        assert!(refusal.contains("REPLICATION"), "{refusal}");
    }
    rights.drop_role(&database.pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_polls_needs_exactly_the_documented_grants() {
    each_grant_is_needed_and_all_are_enough(SourceKind::Poll, "poll").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_streams_needs_exactly_the_documented_grants() {
    each_grant_is_needed_and_all_are_enough(SourceKind::Wal, "wal").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_of_a_debezium_table_needs_exactly_the_documented_grants() {
    let database = migrated_database().await;
    let table = "create table public.outboxevent (id uuid primary key default gen_random_uuid(), \
        aggregatetype text, aggregateid text, type text, payload text)";
    revoke_defaults(&database).await;
    run(&database.pool, table.to_owned()).await;
    let place = Place::new(&database);
    create_topic(&place.brokers, &place.topic, 1).await;
    let rights = rights_of(&database, &place, &["--outbox-table", "public.outboxevent"]);
    rights.grant(&database.pool).await;
    let mut options = place.options();
    let url = rights.url(&database);
    options.database = postgres::DatabaseSettings::parse(&url).expect("a URL");
    options.debezium = Some(DebeziumOutbox::new("public", "outboxevent"));
    options.undeliverable.policy = OnUndeliverable::Stop;
    // Positions are in the database alone, so a relay whose row is deleted makes a first start.
    options.delivery = DeliveryGuarantee::AtLeastOnce;
    let insert = async |n: u32| {
        let sql = format!(
            "insert into public.outboxevent (aggregatetype, aggregateid, type, payload) \
             values ('order', '1', 'T', '{n}')"
        );
        run(&database.pool, sql).await;
    };
    insert(1).await;
    let relay = Running::start(options.clone());
    let mut reader = place.reader();
    reader.until_distinct(1);
    relay.says("stream", "streaming").await;
    insert(2).await;
    reader.until_distinct(2);
    relay.stop().await;
    for right in &rights.sql {
        // The walsender of the relay may still be running.
        let begins = "delete from tidings.relay; select pg_terminate_backend(active_pid, 5000), \
            pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name";
        run(&database.pool, format!("{begins} = '{}'", place.slot())).await;
        right.revoke(&database.pool).await;
        let refusal = Running::start(options.clone()).refusal().await;
        assert!(
            refusal.contains("permission denied"),
            "without {right:?}: {refusal}"
        );
        right.grant(&database.pool).await;
    }
    rights.drop_role(&database.pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_needs_exactly_the_documented_grants() {
    let database = migrated_database().await;
    revoke_defaults(&database).await;
    let rights = Rights::of(&database, &["publisher"]);
    rights.grant(&database.pool).await;
    let outbox = tidings::Outbox::new();
    let event = crate::support::history::Moved {
        account: "a".into(),
        version: 1,
    };
    let works = async || {
        // A new connection each time, because `connect` is examined only at its start.
        let mut conn = sqlx::PgConnection::connect(&rights.url(&database)).await?;
        let mut tx = conn.begin().await?;
        outbox.publish(&mut tx, &event).await?;
        tx.rollback().await?;
        Ok::<(), tidings::PublishError>(())
    };
    works().await.expect("all grants together are sufficient");
    for right in &rights.sql {
        right.revoke(&database.pool).await;
        let published = works().await;
        assert!(published.is_err(), "without {right:?}");
        right.grant(&database.pool).await;
    }
    works().await.expect("each grant is given back");
    // Nothing more is granted: the role can forge neither order nor completeness, and it can read
    // nothing.
    let pool = database.pool_as(&rights.role).await;
    for forbidden in [
        "insert into tidings.outbox (aggregatetype, aggregateid, type, seq) \
         overriding system value values ('a', 'b', 'c', 1)",
        "select * from tidings.outbox",
        "delete from tidings.outbox",
    ] {
        assert!(
            sqlx::raw_sql(forbidden).execute(&pool).await.is_err(),
            "{forbidden}"
        );
    }
    drop(pool);
    rights.drop_role(&database.pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scheduling_and_cancelling_need_exactly_the_documented_grants() {
    let database = migrated_database().await;
    let plain = Rights::of(&database, &["publisher"]);
    let rights = Rights::of_role(&database, &plain.role, &["publisher", "--scheduling"]);
    rights.grant(&database.pool).await;
    let (pool, outbox) = (database.pool_as(&rights.role).await, tidings::Outbox::new());
    let works = async || -> Result<bool, tidings::PublishError> {
        let mut tx = pool.begin().await?;
        let event = crate::support::history::Moved {
            account: "a".into(),
            version: 1,
        };
        let id = outbox
            .publish_after(&mut tx, &event, std::time::Duration::from_secs(60))
            .await?;
        outbox.cancel(&mut tx, id).await
    };
    assert!(works().await.expect("all grants together are sufficient"));
    let added: Vec<_> = rights
        .sql
        .iter()
        .filter(|right| !plain.sql.contains(right))
        .collect();
    assert_eq!(added.len(), 3, "{added:?}");
    for right in added {
        right.revoke(&database.pool).await;
        assert!(works().await.is_err(), "without {right:?}");
        right.grant(&database.pool).await;
    }
    assert!(
        sqlx::raw_sql("select payload from tidings.scheduled")
            .execute(&pool)
            .await
            .is_err(),
        "nothing more is granted: scheduled events cannot be read"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_migrates_at_its_start_needs_one_more_grant() {
    let database = migrated_database().await;
    let plain = Rights::of(&database, &["publisher"]);
    let rights = Rights::of_role(&database, &plain.role, &["publisher", "--migrates"]);
    rights.grant(&database.pool).await;
    let pool = database.pool_as(&rights.role).await;
    tidings::migrate(&pool).await.expect("nothing is missing");
    let added: Vec<_> = rights
        .sql
        .iter()
        .filter(|right| !plain.sql.contains(right))
        .collect();
    assert_eq!(added.len(), 1, "{added:?}");
    added[0].revoke(&database.pool).await;
    assert!(tidings::migrate(&pool).await.is_err(), "{added:?}");
}
