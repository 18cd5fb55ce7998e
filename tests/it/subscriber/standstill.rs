//! The standstill of an aggregate while members are killed or replaced, with the default settings.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::PgPool;
use tidings::event::Envelope;
use tokio::task::JoinHandle;

use super::members::ACCOUNTS;
use super::process::{Process, Renewed, slowly};
use crate::support::place::{
    Changed, Place, assert_once_and_in_order, create_effects, effects, start, until, until_effects,
};
use crate::support::services::{TestDatabase, migrated_database};

/// The guarantee is 10 s, but the machine that runs the tests may be busy.
const LIMIT: Duration = Duration::from_secs(15);

const DEFAULTS: (&str, &str) = ("MEMBER_DEFAULTS", "1");

/// A continuous load. Once this is switched on, every third event has the new type.
struct Load {
    renews: Arc<AtomicBool>,
    done: Arc<AtomicBool>,
    task: JoinHandle<i32>,
}

impl Load {
    fn start(place: &Arc<Place>) -> Self {
        let (renews, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let task = tokio::spawn({
            let (place, renews, done) = (place.clone(), renews.clone(), done.clone());
            async move {
                let mut version = 0;
                while !done.load(Ordering::SeqCst) {
                    version += 1;
                    let renewed = renews.load(Ordering::SeqCst) && version % 3 == 0;
                    let envelopes: Vec<_> = (0..ACCOUNTS)
                        .map(|account| envelope(&place, account, version, renewed))
                        .collect();
                    place.send(&envelopes).await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                version
            }
        });
        Self { renews, done, task }
    }

    /// Ends the load and waits for the effects of everything published. Returns the last version.
    async fn end(self, pool: &PgPool) -> i32 {
        self.done.store(true, Ordering::SeqCst);
        let versions = self.task.await.expect("the event is published");
        until_effects(pool, i64::from(versions) * ACCOUNTS as i64).await;
        versions
    }
}

fn envelope(place: &Place, account: usize, version: i32, renewed: bool) -> Envelope {
    let account = format!("a{account}");
    if !renewed {
        return place.envelope(&Changed { account, version });
    }
    let mut envelope = Envelope::of(&Renewed { account, version }).expect("a valid event");
    envelope.topic = Some(place.topic.clone());
    envelope
}

/// Creates a database whose effects have a timestamp.
async fn timed_database() -> TestDatabase {
    let database = migrated_database().await;
    create_effects(&database.pool).await;
    sqlx::raw_sql(
        "alter table effect add column at timestamptz not null default clock_timestamp()",
    )
    .execute(&database.pool)
    .await
    .expect("the statement succeeds");
    database
}

/// Returns the longest time between two effects of one aggregate.
async fn standstill(pool: &PgPool) -> Duration {
    let longest = "select extract(epoch from max(pause))::float8 from
                   (select at - lag(at) over (partition by account order by seq) as pause \
                   from effect) pauses";
    Duration::from_secs_f64(
        sqlx::query_scalar(longest)
            .fetch_one(pool)
            .await
            .expect("the query succeeds"),
    )
}

/// Returns the number of registered members that run.
async fn registered(pool: &PgPool) -> i64 {
    let running = "select count(*) from tidings.subscriber where stopped_at is null";
    sqlx::query_scalar(running)
        .fetch_one(pool)
        .await
        .expect("the query succeeds")
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_of_a_killed_member_are_read_again_within_seconds() {
    let (database, place) = (timed_database().await, Arc::new(Place::new(8).await));
    let load = Load::start(&place);
    let killed = Process::start_as(&place, &database, &[DEFAULTS]);
    let stays = start!(place.subscriber().on(slowly).inbox(database.pool.clone()));
    stays
        .until("each has its half", |seen| seen.partitions().len() == 4)
        .await;
    let before = effects(&database.pool).await;
    until_effects(&database.pool, before + 500).await;
    killed.kill();
    stays
        .until("one has all", |seen| seen.partitions().len() == 8)
        .await;
    let versions = load.end(&database.pool).await;
    let standstill = standstill(&database.pool).await;
    stays.stop().await;
    println!("standstill after kill -9: {standstill:?}");
    assert!(standstill < LIMIT, "{standstill:?}");
    assert_once_and_in_order(&database.pool, ACCOUNTS, versions).await;
}

/// Members of a version that handles another type replace three members one by one.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_deployment_with_a_new_type_keeps_the_order_and_loses_nothing() {
    let (database, place) = (timed_database().await, Arc::new(Place::new(6).await));
    let mut old: Vec<Process> = (0..3)
        .map(|_| Process::start_as(&place, &database, &[DEFAULTS]))
        .collect();
    let runs = async |members| {
        until("they run", async || {
            (registered(&database.pool).await == members).then_some(())
        })
        .await
    };
    runs(3).await;
    let load = Load::start(&place);
    until_effects(&database.pool, 500).await;
    let mut new = Vec::new();
    while let Some(leaving) = old.pop() {
        new.push(Process::start_as(
            &place,
            &database,
            &[DEFAULTS, ("MEMBER_IS_NEWER", "1")],
        ));
        runs(4).await;
        load.renews.store(true, Ordering::SeqCst);
        let before = effects(&database.pool).await;
        until_effects(&database.pool, before + 300).await;
        leaving.stop().await;
        runs(3).await;
        let before = effects(&database.pool).await;
        until_effects(&database.pool, before + 300).await;
    }
    let versions = load.end(&database.pool).await;
    let standstill = standstill(&database.pool).await;
    for member in new {
        member.stop().await;
    }
    // An aggregate with an event of the new type waits until a newer member has its partition, so
    // this measures the time of the whole rollout.
    println!("standstill of a rolling deployment: {standstill:?}");
    assert_once_and_in_order(&database.pool, ACCOUNTS, versions).await;
}
