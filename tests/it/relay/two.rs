//! Two relays of the same name.

use crate::support::eventually::until_number;
use crate::support::history::{Verdict, caught_up, create_accounts, write_concurrently};
use crate::support::running::Place;
use crate::support::services::{migrated_database, signal};

#[tokio::test(flavor = "multi_thread")]
async fn one_works_one_waits_and_the_second_takes_over_where_the_first_stopped() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    create_accounts(&database.pool, 6).await;
    let first = place.start();
    first.says("stream", "streaming").await;
    let second = place.start();
    second.says("lease", "standing by").await;
    write_concurrently(&database.pool, 2, 6, 50).await;
    first.stop().await;
    second.says("stream", "streaming").await;
    second.says("lease", "epoch 2").await;
    write_concurrently(&database.pool, 2, 6, 50).await;
    assert_eq!(
        second.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
}

/// Tools end sessions that are idle in a transaction for long, and monitoring reports them.
#[tokio::test(flavor = "multi_thread")]
async fn the_lease_is_held_without_an_open_transaction_and_a_suspended_leader_loses_it() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    create_accounts(&database.pool, 6).await;
    let first = place.spawn();
    let idle = "select count(*) from pg_stat_activity a
        where application_name like 'tidings lease %' and datname = current_database()
            and state = 'idle' and xact_start is null
            and exists (select from pg_locks l
                where l.pid = a.pid and l.locktype = 'advisory' and l.granted)";
    until_number(&database.pool, "it leads", idle, |n| n == 1).await;
    signal(first.pid(), "STOP");
    let second = place.start();
    second.says("stream", "streaming").await;
    signal(first.pid(), "CONT");
    write_concurrently(&database.pool, 2, 6, 30).await;
    let verdict = second.verdict(&database.pool, &mut place.reader()).await;
    assert_eq!(verdict, Verdict::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_within_seconds() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    create_accounts(&database.pool, 6).await;
    let mut first = place.spawn();
    write_concurrently(&database.pool, 2, 6, 30).await;
    let mut reader = place.reader();
    caught_up(&database.pool, &mut reader).await;
    let second = place.start();
    second.says("lease", "standing by").await;
    first.kill();
    second.says("stream", "streaming").await;
    write_concurrently(&database.pool, 2, 6, 30).await;
    let verdict = second.verdict(&database.pool, &mut reader).await;
    assert_eq!(
        (verdict.lost, verdict.misordered, verdict.never_committed),
        (0, 0, 0),
        "{verdict:?}"
    );
}
