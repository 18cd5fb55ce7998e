//! Histories of aggregate versions: the versions that writers committed, compared with the topic.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use sqlx::{Connection as _, PgPool};
use tidings::{DomainEvent, Outbox};

use super::{
    records::{Reader, Record},
    running::Place,
};
use crate::support::services::{TestDatabase, migrated_database};

/// One step of an aggregate. Versions start at 1 and increase by one.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "account", id = "account")]
pub(crate) struct Moved {
    pub(crate) account: String,
    pub(crate) version: i64,
}

/// The findings of the checker. `Default` is the result of a relay without faults.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) lost: usize,
    pub(crate) repeated: usize,
    pub(crate) misordered: usize,
    pub(crate) never_committed: usize,
    pub(crate) in_two_partitions: usize,
}

/// Returns a database with this number of accounts and a place for its relay.
pub(crate) async fn with_accounts(accounts: usize) -> (TestDatabase, Place) {
    let database = migrated_database().await;
    let place = Place::new(&database);
    create_accounts(&database.pool, accounts).await;
    (database, place)
}

pub(crate) async fn create_accounts(pool: &PgPool, accounts: usize) {
    sqlx::raw_sql("create table account (id text primary key, version bigint not null default 0)")
        .execute(pool)
        .await
        .expect("the statement succeeds");
    sqlx::query("insert into account (id) select 'a' || n from generate_series(0, $1 - 1) n")
        .bind(i64::try_from(accounts).expect("the number fits"))
        .execute(pool)
        .await
        .expect("the table is filled");
}

/// Commits or rolls back `transactions` transactions of 1 to 4 steps. Each step locks its account
/// and then publishes. Some steps run in a savepoint that is rolled back.
pub(crate) async fn write(pool: &PgPool, seed: u64, accounts: u64, transactions: usize) {
    let outbox = Outbox::new();
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for _ in 0..transactions {
        let mut tx = pool.begin().await.expect("a transaction begins");
        // On average, half of the steps change one hot account. The accounts are sorted, so that
        // writers do not deadlock.
        let mut steps: Vec<u64> = (0..=next(4))
            .map(|_| if next(2) == 0 { 0 } else { next(accounts) })
            .collect();
        steps.sort_unstable();
        for account in steps {
            let mut savepoint = tx.begin().await.expect("a savepoint");
            step(&outbox, &mut savepoint, account).await;
            if next(5) == 0 {
                savepoint.rollback().await.expect("the rollback succeeds");
            } else {
                savepoint.commit().await.expect("the savepoint is released");
            }
        }
        if next(6) == 0 {
            tx.rollback().await.expect("the rollback succeeds");
        } else {
            tx.commit().await.expect("the commit succeeds");
        }
    }
}

async fn step(outbox: &Outbox, connection: &mut sqlx::PgConnection, account: u64) {
    let account = format!("a{account}");
    let version = sqlx::query_scalar(
        "update account set version = version + 1 where id = $1 returning version",
    )
    .bind(&account)
    .fetch_one(&mut *connection)
    .await
    .expect("locked and changed");
    outbox
        .publish(connection, &Moved { account, version })
        .await
        .expect("the event is published");
}

/// Runs writers concurrently, each with its own seed.
pub(crate) async fn write_concurrently(
    pool: &PgPool,
    writers: u64,
    accounts: u64,
    transactions: usize,
) {
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let pool = pool.clone();
            tokio::spawn(async move { write(&pool, writer + 1, accounts, transactions).await })
        })
        .collect();
    for task in tasks {
        task.await.expect("the writer ends without an error");
    }
}

/// Returns the committed version of each account.
pub(crate) async fn committed(pool: &PgPool) -> HashMap<String, i64> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("select id, version from account where version > 0")
            .fetch_all(pool)
            .await
            .expect("the query succeeds");
    rows.into_iter().collect()
}

/// Compares the topic with the committed versions.
pub(crate) fn judge(committed: &HashMap<String, i64>, records: &[Record]) -> Verdict {
    let mut verdict = Verdict::default();
    // Per account: the highest version delivered so far, and the partition of the first record.
    let mut reached: HashMap<String, (i64, i32)> = HashMap::new();
    for record in records {
        let event: Moved =
            serde_json::from_slice(record.value.as_deref().expect("a value")).expect("an event");
        assert_eq!(record.key, event.account.as_bytes());
        let (last, partition) = reached
            .entry(event.account.clone())
            .or_insert((0, record.partition));
        verdict.in_two_partitions += usize::from(*partition != record.partition);
        if event.version > committed.get(&event.account).copied().unwrap_or(0) {
            verdict.never_committed += 1;
        } else if event.version <= *last {
            verdict.repeated += 1;
        } else {
            verdict.misordered += usize::from(event.version != *last + 1);
            *last = event.version;
        }
    }
    // A skipped version counts as misordered above. If it never arrived, it is also lost.
    let mut delivered: HashMap<String, std::collections::HashSet<i64>> = HashMap::new();
    for record in records {
        let event: Moved =
            serde_json::from_slice(record.value.as_deref().expect("a value")).expect("an event");
        delivered
            .entry(event.account)
            .or_default()
            .insert(event.version);
    }
    for (account, versions) in committed {
        let here = delivered.get(account);
        verdict.lost += (1..=*versions)
            .filter(|version| !here.is_some_and(|here| here.contains(version)))
            .count();
    }
    verdict
}

/// Returns the number of distinct events that were committed.
pub(crate) fn expected(committed: &HashMap<String, i64>) -> usize {
    committed
        .values()
        .map(|versions| usize::try_from(*versions).expect("the version is positive"))
        .sum()
}

/// Waits until the topic contains everything that has been committed so far.
pub(crate) async fn caught_up(pool: &PgPool, reader: &mut Reader) {
    reader.until_distinct(expected(&committed(pool).await));
}

#[test]
fn the_checker_sees_each_kind_of_fault() {
    let record = |account: &str, version: i64, partition: i32| {
        let value = serde_json::to_vec(&Moved {
            account: account.into(),
            version,
        })
        .expect("JSON");
        Record {
            partition,
            key: account.as_bytes().to_vec(),
            value: Some(value),
            headers: HashMap::new(),
            timestamp: 0,
        }
    };
    let committed = HashMap::from([("a".to_owned(), 3), ("b".to_owned(), 1)]);
    let good = [
        record("a", 1, 0),
        record("a", 2, 0),
        record("b", 1, 1),
        record("a", 3, 0),
    ];
    assert_eq!(judge(&committed, &good), Verdict::default());
    assert_eq!(
        judge(&committed, &good[..3]),
        Verdict {
            lost: 1,
            ..Verdict::default()
        }
    );
    let swapped = [
        record("a", 2, 0),
        record("a", 1, 0),
        record("a", 3, 0),
        record("b", 1, 1),
    ];
    assert_eq!(
        judge(&committed, &swapped),
        Verdict {
            misordered: 1,
            repeated: 1,
            ..Verdict::default()
        }
    );
    let phantom = [&good[..], &[record("b", 2, 2)]].concat();
    assert_eq!(
        judge(&committed, &phantom),
        Verdict {
            never_committed: 1,
            in_two_partitions: 1,
            ..Verdict::default()
        }
    );
}
