//! Groups of several members that join, leave and are killed under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dev_services::KafkaOptions;
use sqlx::PgPool;
use tidings::subscriber::{Event, HandlerError, Meta, State, Tx};

use super::process::{Process, slowly};
use crate::support::place::{
    Changed, Place, assert_once_and_in_order, create_effects, effect, effects, start, until,
    until_effects,
};
use crate::support::services::{migrated_database, own_kafka};

pub(super) const ACCOUNTS: usize = 40;

/// A continuous load, so that members are at work whenever others join, leave or die.
pub(super) struct Load {
    done: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<i32>,
}

impl Load {
    pub(super) fn start(place: &Arc<Place>) -> Self {
        let (place, done) = (place.clone(), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn({
            let done = done.clone();
            async move {
                let mut version = 0;
                while !done.load(Ordering::SeqCst) {
                    version += 1;
                    place.publish(ACCOUNTS, version..=version).await;
                    tokio::time::sleep(Duration::from_millis(30)).await;
                }
                version
            }
        });
        Self { done, task }
    }

    /// Ends the load and waits for the effects of everything published. Returns the last version.
    pub(super) async fn end(self, pool: &PgPool) -> i32 {
        self.done.store(true, Ordering::SeqCst);
        let versions = self.task.await.expect("the event is published");
        until_effects(pool, i64::from(versions) * ACCOUNTS as i64).await;
        versions
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_join_leave_and_are_killed_under_load_repeat_no_effect_and_misorder_none() {
    let (database, place) = (migrated_database().await, Arc::new(Place::new(8).await));
    create_effects(&database.pool).await;
    let load = Load::start(&place);
    let mut killed = Process::start(&place, &database);
    for round in 1..=6 {
        let before = effects(&database.pool).await;
        until_effects(&database.pool, before + 300).await;
        let next = Process::start(&place, &database);
        if round % 2 == 0 {
            let leaving = start!(place.subscriber().on(slowly).inbox(database.pool.clone()));
            leaving
                .until("it takes part", |seen| seen.handled() > 0)
                .await;
            leaving.stop().await;
        }
        std::mem::replace(&mut killed, next).kill();
    }
    let versions = load.end(&database.pool).await;
    assert_once_and_in_order(&database.pool, ACCOUNTS, versions).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_come_and_go_in_peace_repeat_nothing_even_without_an_inbox() {
    async fn plainly(
        Event(changed): Event<Changed>,
        State(pool): State<PgPool>,
    ) -> Result<(), HandlerError> {
        sqlx::query("insert into effect (account, version) values ($1, $2)")
            .bind(changed.account)
            .bind(changed.version)
            .execute(&pool)
            .await?;
        Ok(())
    }
    let (database, place) = (migrated_database().await, Arc::new(Place::new(8).await));
    create_effects(&database.pool).await;
    let load = Load::start(&place);
    let build = || {
        place
            .subscriber()
            .on(plainly)
            .state(database.pool.clone())
            .concurrency(8)
    };
    let mut running = vec![start!(build())];
    for _ in 1..=3 {
        let joining = start!(build());
        joining
            .until("it takes part", |seen| seen.handled() > 0)
            .await;
        running.push(joining);
        running.remove(0).stop().await;
    }
    let versions = load.end(&database.pool).await;
    running.remove(0).stop().await;
    assert_once_and_in_order(&database.pool, ACCOUNTS, versions).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn static_members_restart_and_nothing_is_repeated() {
    let (database, place) = (migrated_database().await, Arc::new(Place::new(4).await));
    create_effects(&database.pool).await;
    let load = Load::start(&place);
    let build = |id: &str| {
        place
            .subscriber()
            .on(slowly)
            .inbox(database.pool.clone())
            .instance_id(id)
    };
    let (one, two) = (start!(build("one")), start!(build("two")));
    one.until("the first takes part", |seen| seen.handled() > 0)
        .await;
    two.until("the second takes part", |seen| seen.handled() > 0)
        .await;
    one.stop().await;
    let one = start!(build("one"));
    one.until("the first is back", |seen| seen.handled() > 0)
        .await;
    let versions = load.end(&database.pool).await;
    one.stop().await;
    two.stop().await;
    assert_once_and_in_order(&database.pool, ACCOUNTS, versions).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_does_not_end_in_time_is_rolled_back_and_left_to_the_next_member() {
    async fn hang(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
    ) -> Result<(), HandlerError> {
        effect(&mut tx, &changed, &meta).await?;
        std::future::pending().await
    }
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    place.publish(1, 1..=2).await;
    let hanging = start!(
        place
            .subscriber()
            .on(hang)
            .inbox(database.pool.clone())
            .drain_timeout(Duration::from_millis(200))
    );
    let busy = "select count(*) from pg_stat_activity where datname = current_database() \
        and state = 'idle in transaction'";
    until("the handler hangs", async || {
        let hanging: i64 = sqlx::query_scalar(busy)
            .fetch_one(&database.pool)
            .await
            .expect("the query succeeds");
        (hanging > 0).then_some(())
    })
    .await;
    hanging.stop().await;
    let next = start!(place.subscriber().on(slowly).inbox(database.pool.clone()));
    until_effects(&database.pool, 2).await;
    next.stop().await;
    assert_once_and_in_order(&database.pool, 1, 2).await;
}

/// Enables the group protocol of KIP-848, as `kafka-features.sh upgrade --feature group.version=1`
/// does, with an UpdateFeatures request of version 1.
pub(super) fn enable_broker_side_groups(brokers: &str) {
    use std::io::{Read, Write};
    let mut request = vec![
        0, 57, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0, 0, 0, 0x27, 0x10, 2, 14,
    ];
    request.extend(b"group.version");
    request.extend([0, 1, 1, 0, 0, 0]);
    let mut connection = std::net::TcpStream::connect(brokers).expect("the connection succeeds");
    connection
        .write_all(&(request.len() as i32).to_be_bytes())
        .expect("the write succeeds");
    connection.write_all(&request).expect("the write succeeds");
    let mut length = [0; 4];
    connection.read_exact(&mut length).expect("an answer");
    let mut answer = vec![0; i32::from_be_bytes(length) as usize];
    connection.read_exact(&mut answer).expect("an answer");
    // The response has a correlation id, no tags, a throttle time, and then the error code.
    assert_eq!(answer[9..11], [0, 0], "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_brokers_own_rebalance_protocol_works_too() {
    let broker = own_kafka(KafkaOptions::default()).await;
    enable_broker_side_groups(&broker.brokers());
    let (database, place) = (
        migrated_database().await,
        Arc::new(Place::on(broker.brokers(), 4).await),
    );
    create_effects(&database.pool).await;
    let load = Load::start(&place);
    let build = || {
        place
            .subscriber()
            .on(slowly)
            .inbox(database.pool.clone())
            .broker_side_rebalance()
    };
    let one = start!(build());
    one.until("the first takes part", |seen| seen.handled() > 0)
        .await;
    let two = start!(build());
    two.until("the second takes part", |seen| seen.handled() > 0)
        .await;
    one.stop().await;
    let versions = load.end(&database.pool).await;
    two.stop().await;
    assert_once_and_in_order(&database.pool, ACCOUNTS, versions).await;
}
