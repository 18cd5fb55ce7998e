//! Loss, change or removal of the log: the table supplies the missing events, and nothing is lost
//! or repeated.

use std::time::Duration;

use sqlx::PgPool;
use tidings::relay::{DeliveryGuarantee, RelayOptions, SourceKind};

use crate::support::history::{Verdict, create_accounts, with_accounts, write_concurrently};
use crate::support::records::Reader;
use crate::support::running::{Place, Running};
use crate::support::services::{migrated_database, migrated_database_on, own_postgres};

/// Drops the relay's slot, even while a session reads from it.
async fn drop_slot(pool: &PgPool, slot: &str) {
    let sql = "select pg_terminate_backend(active_pid, 5000), pg_drop_replication_slot(slot_name) \
        from pg_replication_slots where slot_name = $1";
    while sqlx::query(sql).bind(slot).execute(pool).await.is_err() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_dropped_again_and_again_under_load_costs_no_event_and_repeats_none() {
    let (database, place) = with_accounts(9).await;
    let relay = place.start();
    relay.says("stream", "streaming").await;
    let (slot, pool) = (place.slot(), database.pool.clone());
    let drops = async {
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            drop_slot(&pool, &slot).await;
        }
    };
    tokio::join!(write_concurrently(&database.pool, 4, 9, 250), drops);
    assert_eq!(
        relay.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_dropped_and_made_anew_by_hand_while_the_relay_was_down_is_noticed_and_healed() {
    let (database, place) = with_accounts(5).await;
    let relay = place.start();
    write_concurrently(&database.pool, 3, 5, 40).await;
    relay.says("stream", "streaming").await;
    relay.stop().await;
    drop_slot(&database.pool, &place.slot()).await;
    write_concurrently(&database.pool, 3, 5, 40).await;
    let made = "select pg_create_logical_replication_slot($1, 'pgoutput')";
    sqlx::query(made)
        .bind(place.slot())
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    write_concurrently(&database.pool, 3, 5, 40).await;
    let relay = place.start();
    assert_eq!(
        relay.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_the_server_invalidated_is_made_anew() {
    let options = dev_services::PostgresOptions::new()
        .set("wal_level", "logical")
        .set("max_slot_wal_keep_size", "1MB")
        .set("min_wal_size", "32MB")
        .set("max_wal_size", "32MB");
    let postgres = own_postgres(options).await;
    let database = migrated_database_on(&postgres.url()).await;
    let place = Place::new(&database);
    create_accounts(&database.pool, 5).await;
    let relay = place.start();
    write_concurrently(&database.pool, 3, 5, 40).await;
    relay.says("stream", "streaming").await;
    relay.stop().await;
    sqlx::raw_sql("create table other (pad text)")
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    let status = "select wal_status from pg_replication_slots where slot_name = $1";
    for _ in 0..50 {
        sqlx::raw_sql(
            "insert into other select repeat('x', 1000) from generate_series(1, 20000); \
            select pg_switch_wal(); checkpoint",
        )
        .execute(&database.pool)
        .await
        .expect("the table is filled");
        let status: Option<String> = sqlx::query_scalar(status)
            .bind(place.slot())
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds");
        if status.as_deref() == Some("lost") {
            break;
        }
    }
    let status: Option<String> = sqlx::query_scalar(status)
        .bind(place.slot())
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    assert_eq!(status.as_deref(), Some("lost"));
    write_concurrently(&database.pool, 3, 5, 40).await;
    let relay = place.start();
    write_concurrently(&database.pool, 3, 5, 40).await;
    relay.says("stream", "streaming").await;
    assert_eq!(
        relay.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_emptied_dropped_and_made_anew_under_a_running_relay_costs_no_event() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let relay = place.start();
    relay.says("stream", "streaming").await;
    let publish = |key: &'static str| {
        let pool = database.pool.clone();
        async move {
            let sql = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
                values ('order', $1, 'T', '1')";
            sqlx::query(sql)
                .bind(key)
                .execute(&pool)
                .await
                .expect("the insert succeeds");
        }
    };
    let run = |sql: String| {
        let pool = database.pool.clone();
        async move {
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
                .execute(&pool)
                .await
                .expect("the statement succeeds")
        }
    };
    let name = place.slot();
    publish("before").await;
    run(format!(
        "alter publication {name} drop table tidings.outbox"
    ))
    .await;
    publish("left out").await;
    run(format!("alter publication {name} add table tidings.outbox")).await;
    publish("between").await;
    place.reader().until_distinct(3);
    run(format!("drop publication {name}")).await;
    publish("dropped").await;
    place.reader().until_distinct(4);
    publish("after").await;
    place.reader().until_distinct(5);
    relay.stop().await;
    assert_eq!(place.reader().read_to_the_end().len(), 5);
}

/// A publication filters each insert by the catalog as of that position in the log. Here the first
/// transaction arrives without its event, and the second arrives with one of its two events.
///
/// In this test, the transaction itself alters the publication. If another session alters it
/// concurrently, a transaction also arrives in part as of the minor releases of May 2025 (15.13 and
/// its counterparts); earlier releases kept one decision for the whole transaction.
///
/// The position lists both transactions as streamed when the relay is killed, before it has
/// compared them with the table.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_the_publication_left_out_in_part_comes_whole_though_the_relay_is_killed_before_it_notices()
 {
    for next in ["the log", "the table"] {
        let database = migrated_database().await;
        let place = Place::new(&database);
        let name = place.slot();
        let insert = |key: &str| {
            format!(
                "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
                 values ('order', '{key}', 'T', '1')"
            )
        };
        let run = async |sql: String| {
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
                .execute(&database.pool)
                .await
                .expect("the statement succeeds");
        };
        // A relay that reads only the log leaves its slot at its position.
        let relay = Running::start(RelayOptions {
            source: SourceKind::Wal,
            ..place.options()
        });
        relay.says("stream", "streaming").await;
        run(insert("before")).await;
        place.reader().until_distinct(1);
        relay.stop().await;
        run(format!(
            "create table other (id int); alter publication {name} set table other"
        ))
        .await;
        run(format!(
            "begin; insert into other values (1); {}; commit",
            insert("beside")
        ))
        .await;
        run(format!("alter publication {name} set table tidings.outbox")).await;
        let (narrow, widen) = ("set (publish = 'update')", "set (publish = 'insert')");
        let (first, second) = (insert("first"), insert("second"));
        run(format!(
            "begin; {first}; alter publication {name} {narrow}; {second}; \
            alter publication {name} {widen}; commit"
        ))
        .await;
        // Force the log as the source, even if other tests have written a large amount of it.
        let mut dying = place.spawn_with(&[
            ("TIDINGS_TEST_DIE_AT", "kafka-committed:1"),
            ("TIDINGS_SOURCE", "wal"),
        ]);
        while !dying.has_died() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let keys = |mut reader: Reader| {
            let mut keys: Vec<_> = reader
                .read_to_the_end()
                .iter()
                .map(|record| String::from_utf8_lossy(&record.key).into_owned())
                .collect();
            keys.sort();
            keys
        };
        assert_eq!(
            keys(place.reader()),
            ["before", "first"],
            "the log brings it in part"
        );
        if next == "the table" {
            drop_slot(&database.pool, &name).await;
        }
        let relay = place.start();
        place.reader().until_distinct(4);
        relay.stop().await;
        assert_eq!(
            keys(place.reader()),
            ["before", "beside", "first", "second"],
            "{next} continues"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_left_in_the_middle_of_a_transaction_because_the_table_is_faster_repeats_nothing()
 {
    // A dedicated server, because this amount of log would make the relays of other tests read the
    // table.
    let postgres =
        own_postgres(dev_services::PostgresOptions::new().set("wal_level", "logical")).await;
    let database = migrated_database_on(&postgres.url()).await;
    let place = Place::new(&database);
    let mut options = place.options();
    options.topics.create = false;
    let relay = Running::start(options);
    relay.says("stream", "streaming").await;
    // The relay waits for the topic of the first event and meanwhile falls behind by 240 MB, which
    // are stored uncompressed. It is in the middle of one of these transactions when it is behind
    // by more than a second and by more than 64 MB.
    let sql = "alter table tidings.outbox alter column payload set storage external;
               insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
               values ('order', '0', 'T', '0')";
    sqlx::raw_sql(sql)
        .execute(&database.pool)
        .await
        .expect("the insert succeeds");
    relay
        .says("kafka", &format!("topic `{}` does not exist", place.topic))
        .await;
    for transaction in 1..=8 {
        let sql = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
                   select 'order', $1::int || '-' || n, 'T', to_json(repeat('x', 20000)) \
                   from generate_series(1, 1500) n";
        sqlx::query(sql)
            .bind(transaction)
            .execute(&database.pool)
            .await
            .expect("the insert succeeds");
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    crate::support::records::create_topic(&place.brokers, &place.topic, 4).await;
    let mut reader = place.reader();
    reader.until_distinct(12_001);
    relay.stop().await;
    assert_eq!(reader.read_to_the_end().len(), 12_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_leaves_inserts_out_when_the_relay_starts_has_it_read_the_table_unless_the_log_is_wanted()
 {
    let (database, place) = with_accounts(5).await;
    let relay = place.start();
    write_concurrently(&database.pool, 2, 5, 20).await;
    relay.says("stream", "streaming").await;
    let run = |sql: String| {
        let pool = database.pool.clone();
        async move {
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
                .execute(&pool)
                .await
                .expect("the statement succeeds")
        }
    };
    let name = place.slot();
    for alteration in ["set (publish = 'update')", "drop table tidings.outbox"] {
        run(format!("alter publication {name} {alteration}")).await;
        write_concurrently(&database.pool, 2, 5, 20).await;
    }
    relay.stop().await;
    let mut log_only = place.options();
    log_only.source = SourceKind::Wal;
    let refusal = Running::start(log_only).refusal().await;
    assert!(
        refusal.contains("leaves inserts out") && refusal.contains("ALTER PUBLICATION"),
        "{refusal}"
    );
    run(format!("alter publication {name} set (publish = 'insert')")).await;
    let relay = place.start();
    write_concurrently(&database.pool, 2, 5, 20).await;
    let mut reader = place.reader();
    crate::support::history::caught_up(&database.pool, &mut reader).await;
    let reason = "select source_reason from tidings.relay where name = $1 and source = 'table'";
    let mut said = None;
    for _ in 0..6_000 {
        said = sqlx::query_scalar::<_, String>(reason)
            .bind(&place.name)
            .fetch_optional(&database.pool)
            .await
            .expect("the query succeeds");
        if said
            .as_ref()
            .is_some_and(|reason| reason.contains("does not contain the outbox"))
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        said.as_ref()
            .is_some_and(|reason| reason.contains("does not contain the outbox")),
        "{said:?}"
    );
    relay.stop().await;
    run(format!("alter publication {name} add table tidings.outbox")).await;
    let relay = place.start();
    relay.says("stream", "streaming").await;
    write_concurrently(&database.pool, 2, 5, 20).await;
    let verdict = relay.verdict(&database.pool, &mut reader).await;
    // Events that the stream left out while the relay ran may arrive late, which the relay reports.
    assert_eq!(
        Verdict {
            misordered: 0,
            ..verdict
        },
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_source_goes_on_where_the_other_stopped() {
    let (database, place) = with_accounts(7).await;
    let writing = tokio::spawn({
        let pool = database.pool.clone();
        async move { write_concurrently(&pool, 4, 7, 400).await }
    });
    let all = [SourceKind::Poll, SourceKind::Wal, SourceKind::Auto];
    for (round, source) in all.into_iter().cycle().take(9).enumerate() {
        let mut options = place.options();
        options.source = source;
        // The delivery changes too, so positions move from the topic to the row and back.
        options.delivery = if round % 4 == 3 {
            DeliveryGuarantee::AtLeastOnce
        } else {
            DeliveryGuarantee::ExactlyOnce
        };
        let relay = Running::start(options);
        tokio::time::sleep(Duration::from_millis(900)).await;
        relay.stop().await;
    }
    writing.await.expect("the write succeeds");
    let relay = place.start();
    assert_eq!(
        relay.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_alone_gives_every_event_once_and_in_order_and_keeps_no_slot() {
    let (database, place) = with_accounts(12).await;
    place.start().stop().await;
    let mut options = place.options();
    options.source = SourceKind::Poll;
    let relay = Running::start(options);
    // An open transaction does not hold up other transactions.
    let mut open = database.pool.begin().await.expect("a transaction begins");
    sqlx::query("select pg_current_xact_id()")
        .execute(&mut *open)
        .await
        .expect("an id");
    write_concurrently(&database.pool, 6, 12, 120).await;
    let slots: i64 =
        sqlx::query_scalar("select count(*) from pg_replication_slots where slot_name = $1")
            .bind(place.slot())
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds");
    assert_eq!(
        relay.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
    assert_eq!(slots, 0);
}
