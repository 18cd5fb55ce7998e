//! The handover from a Debezium connector to a relay and back, without a gap and without a repeat.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, PgPool};
use tidings::relay::{HandOver, Offset, TopicRewrite};

use super::{TABLE, connector::debezium, insert, options, recorded::wait_for_slots};
use crate::support::eventually::until;
use crate::support::records::{Reader, create_topic};
use crate::support::running::{Place, Running};
use crate::support::services::migrated_database;

/// Returns the usual properties of a connector.
pub(super) fn properties(url: &url::Url, table: &str, name: &str) -> Vec<(String, String)> {
    let unique = format!("d{}", uuid::Uuid::now_v7().simple());
    let port = url.port().expect("a port").to_string();
    let transform = "io.debezium.transforms.outbox.EventRouter";
    [
        (
            "connector.class",
            "io.debezium.connector.postgresql.PostgresConnector",
        ),
        ("database.hostname", url.host_str().expect("a host")),
        ("database.port", &port),
        ("database.user", url.username()),
        ("database.password", url.password().unwrap_or("none")),
        ("database.dbname", &url.path()[1..]),
        ("topic.prefix", name),
        ("plugin.name", "pgoutput"),
        ("slot.name", &unique),
        ("publication.name", name),
        ("publication.autocreate.mode", "filtered"),
        ("table.include.list", table),
        ("snapshot.mode", "no_data"),
        ("transforms", "outbox"),
        ("transforms.outbox.type", transform),
        // Omit the headers about Debezium itself.
        ("extended.headers.enabled", "false"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// Returns the numbers of each aggregate in topic order.
fn sequences(reader: &mut Reader) -> BTreeMap<String, Vec<u32>> {
    let mut sequences: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for record in reader.read_to_the_end() {
        let aggregate = String::from_utf8_lossy(&record.key).into_owned();
        sequences
            .entry(aggregate)
            .or_default()
            .push(record.text().parse().expect("a number"));
    }
    sequences
}

fn assert_once_in_order(reader: &mut Reader, aggregates: &[(&str, u32)]) {
    let expected: BTreeMap<String, Vec<u32>> = aggregates
        .iter()
        .map(|(name, count)| ((*name).to_owned(), (0..*count).collect()))
        .collect();
    let found = sequences(reader);
    for (aggregate, expected) in &expected {
        let breaks: Vec<_> = found[aggregate]
            .windows(2)
            .filter(|pair| pair[1] != pair[0] + 1)
            .take(5)
            .collect();
        assert!(
            found[aggregate] == *expected,
            "{aggregate}: {} of {} events, jumps {breaks:?}",
            found[aggregate].len(),
            expected.len()
        );
    }
}

async fn insert_at_once(pool: &PgPool, aggregate: &str, range: std::ops::Range<u32>) {
    let mut tx = pool.begin().await.expect("a transaction begins");
    for n in range {
        let sql = format!(
            "insert into public.outboxevent (aggregatetype, aggregateid, type, payload) \
             values ('order', '{aggregate}', 'T', '{n}')"
        );
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut *tx)
            .await
            .expect("the insert succeeds");
    }
    tx.commit().await.expect("the commit succeeds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_and_an_offset_in_the_middle_of_a_transaction_are_gone_on_from_exactly() {
    let database = migrated_database().await;
    let (place, pool) = (Place::new(&database), &database.pool);
    let slot = format!("d{}", uuid::Uuid::now_v7().simple());
    sqlx::raw_sql(TABLE)
        .execute(pool)
        .await
        .expect("the statement succeeds");
    sqlx::raw_sql("create publication theirs for all tables")
        .execute(pool)
        .await
        .expect("the statement succeeds");
    sqlx::query("select pg_create_logical_replication_slot($1, 'pgoutput')")
        .bind(&slot)
        .execute(pool)
        .await
        .expect("the statement succeeds");
    insert(pool, "a", 0..3).await;
    sqlx::raw_sql("create table public.other (n int); insert into public.other values (1), (2)")
        .execute(pool)
        .await
        .expect("the other table is created");
    insert_at_once(pool, "b", 0..10).await;
    insert(pool, "c", 0..4).await;
    // The offset that a connector stores after it has sent four events of the large transaction.
    let changes = "select xid::text::bigint, (lsn - '0/0')::bigint \
        from pg_logical_slot_peek_binary_changes($1, null, null, 'proto_version', '1', \
        'publication_names', 'theirs')
                   where get_byte(data, 0) = ascii('I') offset 8 limit 1";
    let (xid, lsn): (i64, i64) = sqlx::query_as(changes)
        .bind(&slot)
        .fetch_one(pool)
        .await
        .expect("the slot can be read");
    let offset = format!(
        r#"{{"offsets":[{{"partition":{{"server":"x"}},
            "offset":{{"lsn_proc":{lsn},"lsn":{lsn},"txId":{xid},"ts_usec":1}}}}]}}"#
    );
    let mut options = options(&place);
    let outbox = options.debezium.as_mut().expect("set");
    outbox.publication = Some("theirs".into());
    outbox.hand_over = Some(HandOver {
        slot: slot.clone(),
        offset: Some(Offset::parse(&offset).expect("an offset")),
    });
    let relay = Running::start(options.clone());
    relay.says("stream", "streaming").await;
    insert(pool, "c", 4..6).await;
    let mut reader = place.reader();
    reader.until_distinct(12);
    relay.stop().await;
    let sequences_after = sequences(&mut reader);
    assert_eq!(
        sequences_after,
        BTreeMap::from([
            ("b".to_owned(), (4..10).collect()),
            ("c".to_owned(), (0..6).collect())
        ])
    );
    // The next start continues from the relay's own position and ignores the offset in the options.
    sqlx::query("select pg_drop_replication_slot($1)")
        .bind(&slot)
        .execute(pool)
        .await
        .expect("the statement succeeds");
    let relay = Running::start(options);
    insert(pool, "c", 6..7).await;
    reader.until_distinct(13);
    relay.stop().await;
    assert_eq!(sequences(&mut reader)["c"], (0..7).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_that_still_runs_or_is_not_there_is_not_taken_over() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    sqlx::raw_sql(TABLE)
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    let mut options = options(&place);
    options.debezium.as_mut().expect("set").hand_over = Some(HandOver {
        slot: "no_such_slot".into(),
        offset: None,
    });
    let refusal = Running::start(options).refusal().await;
    assert!(
        refusal.contains("no slot `no_such_slot`") && refusal.contains("slot.name"),
        "{refusal}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_debezium_hands_over_and_takes_back_while_others_write_and_no_event_is_lost_or_repeated()
 {
    let Some(debezium) = debezium().await else {
        return;
    };
    let database = migrated_database().await;
    let (place, pool) = (Place::new(&database), database.pool.clone());
    sqlx::raw_sql(TABLE)
        .execute(&pool)
        .await
        .expect("the statement succeeds");
    create_topic(&place.brokers, &place.topic, 1).await;
    let url: url::Url = database.url.parse().expect("a URL");
    let mut properties = properties(&url, "public.outboxevent", "shop");
    properties.push((
        "transforms.outbox.route.topic.replacement".into(),
        place.topic.clone(),
    ));
    // With small batches, a stop falls into the middle of a transaction.
    properties.extend(
        [
            ("max.batch.size", "7"),
            ("max.queue.size", "20"),
            ("poll.interval.ms", "5"),
        ]
        .map(|(name, value)| (name.into(), value.into())),
    );
    let slot = properties
        .iter()
        .find(|(name, _)| name == "slot.name")
        .expect("set")
        .1
        .clone();
    let worker = debezium
        .start(&place.brokers, vec![("shop".into(), properties)])
        .await;
    wait_for_slots(&database, 1, || worker.log()).await;

    let stop = tokio_util::sync::CancellationToken::new();
    let writers: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .map(|aggregate| tokio::spawn(write_until(pool.clone(), aggregate, stop.clone())))
        .collect();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let offset = worker.stop("shop").await;
    let mut options = options(&place);
    options.topic_rewrite = Some(TopicRewrite::parse(".*", &place.topic).expect("a valid rewrite"));
    let outbox = options.debezium.as_mut().expect("set");
    outbox.publication = Some("shop".into());
    outbox.hand_over = Some(HandOver {
        slot: slot.clone(),
        offset: Some(Offset::parse(&offset).expect("an offset")),
    });
    let relay = Running::start(options.clone());
    relay.says("stream", "streaming").await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    relay.stop().await;
    // Hand the table back. A relay that stopped within a transaction is started again until its
    // position is between transactions.
    until("the position is between transactions", async || {
        let whole = "select position -> 'partial' = 'null' from tidings.relay where name = $1";
        if sqlx::query_scalar::<_, bool>(whole)
            .bind(&place.name)
            .fetch_one(&pool)
            .await
            .expect("the query succeeds")
        {
            return Some(());
        }
        let relay = Running::start(options.clone());
        relay.says("stream", "streaming").await;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        relay.stop().await;
        None
    })
    .await;
    // The last confirmation may not have reached a busy server, but the relay's row contains it.
    // The server may also not have noticed that the relay has disconnected.
    let active = "select active from pg_replication_slots where slot_name = $1";
    until("the server has noticed the disconnection", async || {
        let is_active = sqlx::query_scalar::<_, bool>(active)
            .bind(place.slot())
            .fetch_one(&pool)
            .await
            .expect("the query succeeds");
        (!is_active).then_some(())
    })
    .await;
    let advance = "select pg_replication_slot_advance($1, (position ->> 'log')::pg_lsn) \
        from tidings.relay where name = $2";
    sqlx::query(advance)
        .bind(place.slot())
        .bind(&place.name)
        .execute(&pool)
        .await
        .expect("the statement succeeds");
    sqlx::query("select pg_drop_replication_slot($1)")
        .bind(&slot)
        .execute(&pool)
        .await
        .expect("the statement succeeds");
    sqlx::query("select pg_copy_logical_replication_slot($1, $2)")
        .bind(place.slot())
        .bind(&slot)
        .execute(&pool)
        .await
        .expect("the statement succeeds");
    worker.resume_from_the_slot("shop").await;
    wait_for_slots(&database, 1, || worker.log()).await;
    stop.cancel();
    let mut counts = Vec::new();
    for (aggregate, writer) in ["a", "b", "c"].into_iter().zip(writers) {
        counts.push((aggregate, writer.await.expect("the task does not panic")));
    }
    let mut reader = place.reader();
    let sum = counts.iter().map(|(_, count)| *count as usize).sum();
    reader.until_distinct_or(sum, || {
        let mut again = place.reader();
        let state = async {
            let slots: Vec<String> = sqlx::query_scalar(
                "select s::text || ' now ' || pg_current_wal_lsn() from pg_replication_slots s",
            )
            .fetch_all(&pool)
            .await
            .expect("the query succeeds");
            (worker.status("shop").await, slots)
        };
        let runtime = tokio::runtime::Handle::current();
        let state = tokio::task::block_in_place(|| runtime.block_on(state));
        let found: Vec<_> = sequences(&mut again)
            .into_iter()
            .map(|(aggregate, all)| {
                let jumps = all.windows(2).filter(|pair| pair[1] != pair[0] + 1);
                (
                    aggregate,
                    all.last().copied(),
                    jumps.take(5).map(<[u32]>::to_vec).collect::<Vec<_>>(),
                )
            })
            .collect();
        format!(
            "written {counts:?}, last and jumps {found:?}, {state:?}\n{}",
            worker.log()
        )
    });
    drop(worker);
    assert_once_in_order(&mut reader, &counts);
}

/// Writes transactions of 1 to 40 events of one aggregate until `stop` is cancelled. Returns the
/// total number of events.
async fn write_until(
    pool: PgPool,
    aggregate: &'static str,
    stop: tokio_util::sync::CancellationToken,
) -> u32 {
    let (mut next, mut size) = (0, 1);
    while !stop.is_cancelled() {
        insert_at_once(&pool, aggregate, next..next + size).await;
        next += size;
        size = (size * 7) % 41;
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    }
    next
}
