//! Relays of the same name on one server and one Kafka: none takes the slot or the positions of
//! another.

use sqlx::{AssertSqlSafe, PgPool};

use super::operator::insert;
use crate::support::running::{Place, Running, new_topic};
use crate::support::services::{TestDatabase, migrated_database, restored};

/// Returns the slots of this database.
async fn slots(pool: &PgPool) -> Vec<String> {
    let sql = "select slot_name::text from pg_replication_slots \
        where database = current_database() order by 1";
    sqlx::query_scalar(sql)
        .fetch_all(pool)
        .await
        .expect("the query succeeds")
}

async fn run(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(pool)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Returns a place whose relay has the default name.
fn default_place(database: &TestDatabase) -> Place {
    Place {
        name: "tidings".into(),
        ..Place::new(database)
    }
}

/// Returns a place in another database whose relay has the same name.
fn same_name(place: &Place, database: &TestDatabase) -> Place {
    Place {
        name: place.name.clone(),
        topic: new_topic(),
        ..Place::new(database)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_databases_of_one_server_have_relays_of_the_default_name() {
    let (one, other) = (migrated_database().await, migrated_database().await);
    let places = [default_place(&one), default_place(&other)];
    let relays = [places[0].start(), places[1].start()];
    for relay in &relays {
        relay.says("stream", "streaming").await;
    }
    insert(&one.pool, 1..=3).await;
    insert(&other.pool, 4..=5).await;
    places[0].reader().until_distinct(3);
    places[1].reader().until_distinct(2);
    for (database, place) in [(&one, &places[0]), (&other, &places[1])] {
        assert_eq!(
            slots(&database.pool).await,
            [format!("tidings_{}", database.mark)]
        );
        let (code, text) = place.command(&["status"]);
        assert!(code == 0 && text.contains("active"), "{text}");
        let (code, text) = place.command(&["check", "--topic", &place.topic]);
        assert!(code == 0, "{text}");
    }
    for relay in relays {
        relay.stop().await;
    }
    assert_eq!(places[0].reader().read_to_the_end().len(), 3);
    assert_eq!(places[1].reader().read_to_the_end().len(), 2);
}

/// The slot and the publication have the names of an earlier version.
#[tokio::test(flavor = "multi_thread")]
async fn an_installation_keeps_the_slot_and_the_publication_that_it_has() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    insert(&database.pool, 1..=2).await;
    let relay = place.start();
    place.reader().until_distinct(2);
    relay.says("stream", "streaming").await;
    relay.stop().await;
    let old = format!("tidings_{}", place.name);
    let (slot, new) = (
        format!(
            "select pg_drop_replication_slot('{0}'); drop publication {0}",
            place.slot()
        ),
        &old,
    );
    while sqlx::raw_sql(AssertSqlSafe(slot.clone()))
        .execute(&database.pool)
        .await
        .is_err()
    {}
    run(
        &database.pool,
        &format!(
            "update tidings.relay set slot = null, publication = null;
             create publication {new} for table tidings.outbox with (publish = 'insert')"
        ),
    )
    .await;
    run(
        &database.pool,
        &format!("select pg_create_logical_replication_slot('{new}', 'pgoutput')"),
    )
    .await;
    insert(&database.pool, 3..=4).await;
    let relay = place.start();
    relay.says("stream", "streaming").await;
    place.reader().until_distinct(4);
    let (_, text) = place.command(&["status"]);
    assert!(text.contains("active"), "{text}");
    relay.stop().await;
    assert_eq!(slots(&database.pool).await, std::slice::from_ref(&old));
    assert_eq!(place.reader().read_to_the_end().len(), 4);
    let (code, text) = place.command(&["relay", "forget", &place.name, "--yes"]);
    assert!(
        code == 0
            && text.contains(&format!("slot {old}"))
            && text.contains(&format!("publication {old}")),
        "{text}"
    );
    assert_eq!(slots(&database.pool).await, [] as [String; 0]);
}

/// Relays of different schemas in one database have different slots, and an unmarked slot stays
/// with its owner.
#[tokio::test(flavor = "multi_thread")]
async fn two_schemas_of_one_database_have_relays_of_one_name() {
    let database = migrated_database().await;
    tidings::Migrations::new()
        .schema("other")
        .run(&database.pool)
        .await
        .expect("the migration succeeds");
    let place = Place::new(&database);
    let unmarked = format!("tidings_{}", place.name);
    run(
        &database.pool,
        &format!(
            "create publication {unmarked} for table tidings.outbox with (publish = 'insert')"
        ),
    )
    .await;
    run(
        &database.pool,
        &format!("select pg_create_logical_replication_slot('{unmarked}', 'pgoutput')"),
    )
    .await;
    let other = Place {
        topic: new_topic(),
        ..same_name(&place, &database)
    };
    let mut options = other.options();
    options.schema = "other".into();
    let relays = [place.start(), Running::start(options)];
    for relay in &relays {
        relay.says("stream", "streaming").await;
    }
    let marked = format!(
        "{unmarked}_{}",
        crate::support::services::mark(&database.pool, "other").await
    );
    assert_eq!(slots(&database.pool).await, [unmarked, marked]);
    insert(&database.pool, 1..=1).await;
    run(
        &database.pool,
        "insert into other.outbox (aggregatetype, aggregateid, type, payload) \
        values ('order', '2', 'T', '2')",
    )
    .await;
    place.reader().until_distinct(1);
    other.reader().until_distinct(1);
    for relay in relays {
        relay.stop().await;
    }
}

/// Asserts that a relay on a copy is refused with a remedy and that the remedy works, while the
/// original is unaffected.
async fn a_copy_is_told_what_to_do(
    original: &TestDatabase,
    place: &Place,
    relay: Running,
    copy: &TestDatabase,
) {
    let theirs = same_name(place, copy);
    let text = theirs.start().refusal().await;
    let expected = format!("copy of database `{}` of the same server", original.name);
    assert!(
        text.contains(&expected)
            && text.contains("skip --all")
            && text.contains("leaves out 0 events"),
        "{text}"
    );
    let (code, report) = theirs.command(&["check"]);
    assert!(code == 1 && report.contains(&expected), "{report}");
    let (code, text) = theirs.command(&["relay", "adopt", "--yes"]);
    assert!(
        code == 3 && text.contains("still exists") && text.contains("skip --all"),
        "{text}"
    );
    let (code, text) = theirs.command(&["relay", "skip", "--all", "--yes"]);
    assert!(code == 0, "{text}");
    let second = theirs.start();
    second.says("stream", "streaming").await;
    insert(&copy.pool, 101..=102).await;
    insert(&original.pool, 4..=6).await;
    theirs.reader().until_distinct(2);
    place.reader().until_distinct(6);
    relay.says("stream", "streaming").await;
    second.stop().await;
    relay.stop().await;
    assert_eq!(place.reader().read_to_the_end().len(), 6, "once each");
    assert_eq!(theirs.reader().read_to_the_end().len(), 2);
    assert_eq!(slots(&copy.pool).await, [theirs.slot()]);
    assert_eq!(slots(&original.pool).await, [place.slot()]);
}

/// Copies the database with `create database ... template`.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_made_of_a_template_does_not_take_the_slot_or_the_positions_of_the_original() {
    let original = migrated_database().await;
    let place = Place::new(&original);
    insert(&original.pool, 1..=3).await;
    let relay = place.start();
    place.reader().until_distinct(3);
    relay.says("stream", "streaming").await;
    relay.stop().await;
    let copy = original.copy().await;
    let relay = place.start();
    relay.says("stream", "streaming").await;
    a_copy_is_told_what_to_do(&original, &place, relay, &copy).await;
}

/// Restores a dump on the same server.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_dump_does_not_take_the_slot_or_the_positions_of_the_original() {
    let original = migrated_database().await;
    let place = Place::new(&original);
    insert(&original.pool, 1..=3).await;
    let relay = place.start();
    place.reader().until_distinct(3);
    relay.says("stream", "streaming").await;
    relay.stop().await;
    let Some(copy) = restored(&original).await else {
        return;
    };
    let relay = place.start();
    relay.says("stream", "streaming").await;
    a_copy_is_told_what_to_do(&original, &place, relay, &copy).await;
}
