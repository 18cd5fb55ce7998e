//! `kill -9` at the two places where an effect could be lost or repeated.

use super::process::{Process, slowly};
use crate::support::eventually::until;
use crate::support::place::{
    Place, assert_once_and_in_order, create_effects, effects, start, until_effects,
};
use crate::support::services::migrated_database;

/// Number of aggregates. Each has at most one event in a transaction.
const AGGREGATES: i64 = 20;

/// Kills a member at the thirtieth time that it reaches a step, lets another take over, and checks
/// the effects. Returns the number of duplicates.
async fn died_at(step: &str) -> u64 {
    let (database, place) = (migrated_database().await, Place::new(4).await);
    create_effects(&database.pool).await;
    place.publish(20, 1..=5).await;
    Process::start_to_die_at(&place, &database, &format!("{step}:30"))
        .until_it_dies()
        .await;
    // The server may still execute a commit that the member has sent.
    until("the member's sessions have ended", async || {
        let sessions: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity \
             where datname = current_database() and backend_type = 'client backend'",
        )
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
        (sessions <= i64::from(database.pool.size())).then_some(())
    })
    .await;
    let before = effects(&database.pool).await;
    // Of the thirty effects, those whose transactions are open are rolled back.
    assert!(
        (30 - AGGREGATES..100).contains(&before),
        "it died after {before} effects"
    );
    let next = start!(place.subscriber().on(slowly).inbox(database.pool.clone()));
    until_effects(&database.pool, 100).await;
    next.until("all are seen", |seen| {
        before.unsigned_abs() + seen.handled() >= 100
    })
    .await;
    let duplicates = next.statistics.duplicates();
    next.stop().await;
    assert_once_and_in_order(&database.pool, 20, 5).await;
    duplicates
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_an_effect_and_its_commit_the_effect_is_made_once_by_the_next_member() {
    died_at("effect-made").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_a_commit_and_its_offset_the_next_member_knows_the_event_and_repeats_no_effect()
 {
    assert!(
        died_at("effect-committed").await > 0,
        "a committed event was delivered again"
    );
}
