//! Changes of the database under a relay: rows deleted by hand, server upgrades, dumps restored
//! elsewhere.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use dev_services::{KafkaOptions, Postgres, PostgresOptions};
use sqlx::{AssertSqlSafe, PgPool};

use super::operator::insert;
use crate::support::records::Record;
use crate::support::running::{Place, Running};
use crate::support::services::{
    TestDatabase, migrated_database, migrated_database_on, own_kafka, own_postgres, restored_on,
};

async fn run(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(pool)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Runs a relay until it has published events with these numbers, then stops it cleanly.
async fn ran(place: &Place, pool: &PgPool, ids: std::ops::RangeInclusive<i64>) {
    let count = usize::try_from(*ids.end()).expect("the number fits");
    insert(pool, ids).await;
    let relay = place.start();
    place.reader().until_distinct(count);
    relay.says("stream", "streaming").await;
    relay.stop().await;
}

fn numbers(records: &[Record]) -> Vec<i64> {
    let mut numbers: Vec<i64> = records
        .iter()
        .map(|record| record.text().parse().expect("a number"))
        .collect();
    numbers.sort_unstable();
    numbers
}

/// The deleted rows were published, so nothing is lost and the relay continues.
#[tokio::test(flavor = "multi_thread")]
async fn published_rows_that_were_deleted_by_hand_do_not_stop_a_relay() {
    for delete in [
        "delete from tidings.outbox",
        "truncate tidings.outbox",
        "truncate tidings.outbox restart identity",
    ] {
        let database = migrated_database().await;
        let place = Place::new(&database);
        ran(&place, &database.pool, 1..=3).await;
        run(&database.pool, delete).await;
        insert(&database.pool, 4..=5).await;
        let (code, text) = place.command(&["check", "--topic", &place.topic]);
        assert_eq!(code, 0, "{text}");
        ran(&place, &database.pool, 6..=7).await;
        assert_eq!(
            numbers(place.reader().read_to_the_end()),
            [1, 2, 3, 4, 5, 6, 7],
            "{delete}"
        );
    }
}

/// If the database cannot decide between two causes, the error names both, and the remedy that
/// loses nothing comes first.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_event_that_only_kafka_has_a_record_of_is_refused_with_both_causes_and_counts() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    ran(&place, &database.pool, 1..=2).await;
    run(
        &database.pool,
        "create table older as select position, number from tidings.relay",
    )
    .await;
    ran(&place, &database.pool, 3..=4).await;
    // A crash leaves this state: the copy in the database is older than the position in Kafka.
    run(
        &database.pool,
        "update tidings.relay set position = older.position, number = older.number from older",
    )
    .await;
    run(
        &database.pool,
        "set local tidings.delete_unpublished = on; delete from tidings.outbox \
        where aggregateid = '4'",
    )
    .await;
    insert(&database.pool, 5..=5).await;
    let text = place.start().refusal().await;
    assert!(
        text.contains("Either the database lost commits") && text.contains("deleted the row"),
        "{text}"
    );
    let remedies = ["rewind --to-mirror", "rewind --all", "skip --all"]
        .map(|remedy| text.find(remedy).expect("the text names each remedy"));
    assert!(
        remedies.is_sorted()
            && text.contains("publishes the 1 event that")
            && text.contains("3 events of it again"),
        "{text}"
    );
    let (code, text) = place.command(&["relay", "rewind", "--to-mirror", "--yes"]);
    assert_eq!(code, 0, "{text}");
    let relay = place.start();
    place.reader().until_distinct(5);
    relay.stop().await;
}

/// `pg_upgrade` refuses a slot that has not consumed every transaction of its database, including
/// those of other writers.
#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_leaves_no_transaction_behind_the_slot() {
    // A dedicated server, because nothing else may write to its log.
    let mut server = own_postgres(PostgresOptions::new().set("autovacuum", "off")).await;
    let database = migrated_database_on(&server.url()).await;
    let has_inspector = sqlx::raw_sql("create extension pg_walinspect")
        .execute(&database.pool)
        .await
        .is_ok();
    let place = Place::new(&database);
    ran(&place, &database.pool, 1..=3).await;
    let pending = "select count(*) from pg_logical_slot_peek_binary_changes($1, null, null, \
        'proto_version', '1', 'publication_names', $1)";
    let pending: i64 = sqlx::query_scalar(pending)
        .bind(place.slot())
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    assert_eq!(pending, 0);
    if has_inspector {
        let left = "select count(*) from pg_replication_slots s,
                        pg_get_wal_records_info_till_end_of_wal(confirmed_flush_lsn) r
                    where slot_name = $1 and resource_manager = 'Transaction'";
        // Flush the remaining changes and write one more record, because the function needs a
        // record to begin with.
        run(&database.pool, "checkpoint").await;
        let left: i64 = sqlx::query_scalar(left)
            .bind(place.slot())
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds");
        assert_eq!(left, 0);
    }
    ran(&place, &database.pool, 4..=5).await;
    assert_eq!(numbers(place.reader().read_to_the_end()), [1, 2, 3, 4, 5]);
    if server.version() >= 17 {
        database.pool.close().await;
        server.stop().expect("the service stops");
        require_caught_up(&server, &database.name, &place.slot());
        server.start_again().expect("the service starts");
    }
}

/// An event that is not published when the relay ends remains in the slot, or it is parked.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_not_published_is_kept_when_the_relay_ends() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    ran(&place, &database.pool, 1..=2).await;
    // The missing topic keeps the event from being published.
    let relay = place.start();
    relay.says("stream", "streaming").await;
    let hold = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, topic) \
        values ('order', '3', 'T', '3', 'no-such-topic-' || gen_random_uuid())";
    let mut options = place.options();
    options.topics.create = false;
    relay.stop().await;
    let relay = Running::start(options);
    relay.says("stream", "streaming").await;
    run(&database.pool, hold).await;
    relay.says("kafka", "no-such-topic").await;
    relay.stop().await;
    let kept = "select count(*) from pg_logical_slot_peek_binary_changes($1, null, null, \
        'proto_version', '1', 'publication_names', $1)
                where get_byte(data, 0) = ascii('I')";
    let kept: i64 = sqlx::query_scalar(kept)
        .bind(place.slot())
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    let parked = sqlx::query_scalar("select count(*) from tidings.parked where relay = $1")
        .bind(&place.name);
    let parked: i64 = parked
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    assert_eq!(kept.max(parked), 1);
}

/// The relay continues from a dump restored on another server without a loss or a repeat, although
/// transaction ids there refer to other transactions.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_restored_on_another_server_is_continued_without_a_loss_or_a_repeat() {
    let before = migrated_database().await;
    let place = Place::new(&before);
    ran(&place, &before.pool, 1..=4).await;
    insert(&before.pool, 5..=6).await;
    let server = own_postgres(PostgresOptions::new()).await;
    let Some(after) = restored_on(&before, &server.url()).await else {
        return;
    };
    let moved = Place {
        topic: place.topic.clone(),
        name: place.name.clone(),
        ..Place::new(&after)
    };
    let text = moved.start().refusal().await;
    assert!(
        text.contains("restored from a dump") && text.find("relay adopt") < text.find("skip --all"),
        "{text}"
    );
    let (code, text) = moved.command(&["relay", "adopt", "--dry-run"]);
    assert!(code == 0 && text.contains("dry run"), "{text}");
    let (code, text) = moved.command(&["relay", "adopt", "--yes"]);
    assert!(code == 0 && text.contains("no event is repeated"), "{text}");
    ran(&moved, &after.pool, 7..=8).await;
    assert_eq!(
        numbers(place.reader().read_to_the_end()),
        [1, 2, 3, 4, 5, 6, 7, 8]
    );
    // The move applies to one start only.
    moved.start().stop().await;
    assert_eq!(place.reader().read_to_the_end().len(), 8);
}

/// Returns the folder of the server's programs if it contains `pg_upgrade`.
fn upgrade_programs(server: &Postgres) -> Option<PathBuf> {
    let major = server.version();
    let folder = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    folder.join("pg_upgrade").exists().then_some(folder)
}

/// `pg_upgrade` keeps transaction ids and gives the server another identity.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_server_is_continued_without_a_loss_or_a_repeat() {
    let mut old = own_postgres(PostgresOptions::new()).await;
    let Some(programs) = upgrade_programs(&old) else {
        return;
    };
    let before = migrated_database_on(&old.url()).await;
    let place = Place::new(&before);
    ran(&place, &before.pool, 1..=4).await;
    insert(&before.pool, 5..=5).await;
    before.pool.close().await;
    let mut new = own_postgres(PostgresOptions::new()).await;
    old.stop().expect("the service stops");
    new.stop().expect("the service stops");
    upgrade(&programs, &old, &new);
    new.start_again().expect("the service starts");
    let mut url: url::Url = new.url().parse().expect("a URL");
    url.set_path(&before.name);
    let moved = Place {
        url: url.to_string(),
        topic: place.topic.clone(),
        name: place.name.clone(),
        ..Place::new(&before)
    };
    let text = moved.start().refusal().await;
    assert!(
        text.contains("upgraded by pg_upgrade")
            && text.find("relay adopt") < text.find("skip --all"),
        "{text}"
    );
    assert!(!text.contains("Kafka has lost"), "{text}");
    let (code, text) = moved.command(&["relay", "adopt", "--yes"]);
    assert!(code == 0, "{text}");
    let pool = PgPool::connect(url.as_str())
        .await
        .expect("the upgraded server answers");
    ran(&moved, &pool, 6..=7).await;
    assert_eq!(
        numbers(place.reader().read_to_the_end()),
        [1, 2, 3, 4, 5, 6, 7]
    );
}

/// Runs `pg_upgrade` from one stopped server to another, as the owner of their data folders.
fn upgrade(programs: &Path, old: &Postgres, new: &Postgres) {
    let (bin, data) = (programs.display(), new.data_folder());
    let script = format!(
        "cd '{data}' && '{bin}/pg_upgrade' -U postgres -b '{bin}' -B '{bin}' -d '{old}' -D \
         '{data}' -p {port} -P {other} --socketdir='{data}'",
        old = old.data_folder().display(),
        data = data.display(),
        port = old.port(),
        other = new.port(),
    );
    as_owner(&data, &script);
}

/// Runs a script as the owner of the data folder, because Postgres refuses to run as root. Returns
/// the output of the script.
fn as_owner(data: &Path, script: &str) -> String {
    let ask = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .output()
            .expect("the program runs")
            .stdout;
        String::from_utf8(output).expect("text").trim().to_owned()
    };
    let owner = ask("stat", &["-c", "%u %g", &data.to_string_lossy()]);
    let (user, group) = owner.split_once(' ').expect("`stat` prints two numbers");
    let mut command = Command::new(if ask("id", &["-u"]) == user {
        "sh"
    } else {
        "setpriv"
    });
    if command.get_program() == "setpriv" {
        command.args(["--reuid", user, "--regid", group, "--clear-groups", "sh"]);
    }
    let output = command.args(["-c", script]).output().expect("it runs");
    let written = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{written}");
    written
}

/// Asserts that the slot of a stopped server passes the check of `pg_upgrade`. Needs version 17 or
/// later, and does nothing unless `TIDINGS_POSTGRES_BIN` is set.
fn require_caught_up(server: &Postgres, database: &str, slot: &str) {
    let (data, programs) = (server.data_folder(), std::env::var("TIDINGS_POSTGRES_BIN"));
    let Ok(programs) = programs else { return };
    let script = format!(
        "echo \"select binary_upgrade_logical_slot_has_caught_up('{slot}')\" | \
         '{programs}/postgres' --single -b -D '{}' {database}",
        data.display()
    );
    let written = as_owner(&data, &script);
    assert!(written.contains("has_caught_up = \"t\""), "{written}");
}

/// Follows the procedure of docs/operating.md for another Kafka cluster.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_moves_to_another_kafka_cluster_without_a_loss_or_a_repeat() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    ran(&place, &database.pool, 1..=3).await;
    let kafka = own_kafka(KafkaOptions::new()).await;
    let moved = Place {
        brokers: kafka.brokers(),
        topic: place.topic.clone(),
        name: place.name.clone(),
        ..Place::new(&database)
    };
    let text = moved.start().refusal().await;
    assert!(text.contains("published to Kafka cluster"), "{text}");
    let (code, text) = moved.command(&["relay", "rewind", "--to-mirror", "--yes"]);
    assert_eq!(code, 0, "{text}");
    insert(&database.pool, 4..=5).await;
    let relay = moved.start();
    moved.reader().until_distinct(2);
    relay.stop().await;
    assert_eq!(numbers(place.reader().read_to_the_end()), [1, 2, 3]);
    assert_eq!(numbers(moved.reader().read_to_the_end()), [4, 5]);
}

/// Follows the procedure of docs/operating.md for a partitioned outbox.
#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_outbox_is_replaced_by_a_plain_one_without_a_loss_or_a_repeat() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    ran(&place, &database.pool, 1..=2).await;
    let page = include_str!("../../../docs/operating.md");
    let section = page
        .split("## The outbox is no plain table")
        .nth(1)
        .expect("the page has the section");
    let statements = section
        .split("```sql\n")
        .nth(1)
        .and_then(|block| block.split("```").next())
        .expect("the section has statements");
    insert(&database.pool, 3..=3).await;
    run(&database.pool, statements).await;
    let publication = format!(
        "alter publication {} set table tidings.outbox",
        place.slot()
    );
    run(&database.pool, &publication).await;
    ran(&place, &database.pool, 4..=4).await;
    assert_eq!(numbers(place.reader().read_to_the_end()), [1, 2, 3, 4]);
}

/// The number of rows that `status` reads must not grow with the number of published events. The
/// test counts rows instead of measuring time.
#[tokio::test(flavor = "multi_thread")]
async fn status_reads_no_more_rows_than_it_counts() {
    const ROWS: i64 = 150_000;
    let database: TestDatabase = migrated_database().await;
    let place = Place::new(&database);
    ran(&place, &database.pool, 1..=2).await;
    let fill = format!(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
         select 'order', n::text, 'T', '1' from generate_series(1, {ROWS}) n"
    );
    run(&database.pool, &fill).await;
    let read = async || -> (i64, i64) {
        let sql = "select seq_tup_read::bigint, idx_tup_fetch::bigint from pg_stat_user_tables \
            where schemaname = 'tidings' and relname = 'outbox'";
        sqlx::query_as(sql)
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds")
    };
    let settled = async || {
        let mut last = read().await;
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
            let now = read().await;
            if now == last {
                return now;
            }
            last = now;
        }
    };
    for published in [false, true] {
        if published {
            let position = format!(
                "update tidings.relay set position = jsonb_set(position, '{{seen}}', \
                 to_jsonb(pg_current_snapshot()::text)) where name = '{}'",
                place.name
            );
            run(&database.pool, &position).await;
        }
        let before = settled().await;
        let (code, text) = place.command(&["status"]);
        let expected = if published {
            "lag        0\n"
        } else {
            "~ 150,000"
        };
        assert!(code == 0 && text.contains(expected), "{text}");
        let after = settled().await;
        let (scanned, fetched) = (after.0 - before.0, after.1 - before.1);
        assert!(
            scanned == 0 && fetched < 50_000,
            "{scanned} rows are scanned, and {fetched} fetched, published: {published}"
        );
    }
}
