//! Actions: each counts first, then takes effect, and is logged with its user.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::{AssertSqlSafe, PgPool};
use tidings::subscriber::{Event, HandlerError, Meta, Retry, State, Tx};

use super::seed::{SAGA, SCHEDULED, seeded};
use super::{Console, links};
use crate::support::eventually::until_blocking;
use crate::support::place::{self, Changed, create_effects, effect, start, until_effects};
use crate::support::services::{brokers, migrated_database};

/// Opens the action's confirmation, checks the number of affected events, and submits it.
fn carry_out(console: &Console, link: &str, affected: i64) {
    let page = console.page(link);
    let expected = format!("<strong id=\"affected\">{affected}</strong>");
    assert!(page.contains(&expected), "{link}: {page}");
    let response = tokio::task::block_in_place(|| console.submit(&page));
    assert_eq!(response.status, 303, "{response:?}");
    let location = response.header("location").expect("a location");
    if location == "/console/actions" {
        // A slow machine: the action has not ended within the time of the request.
        let page = until_blocking("the action ends", || {
            let page = console.page(location);
            (!page.contains(">running<")).then_some(page)
        });
        let row = page.split("<tbody>").nth(1).expect("rows");
        assert!(row.contains(&format!(">done</span> {affected} ")), "{page}");
        return;
    }
    assert!(
        location.contains(&format!("count={affected}")) && location.contains("done="),
        "{location}"
    );
    let done = console.page(location);
    assert!(done.contains("role=\"status\""), "{done}");
}

async fn count(pool: &PgPool, sql: &str) -> i64 {
    let count = sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from tidings.{sql}")));
    count.fetch_one(pool).await.expect("a count")
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_events_are_counted_first_and_then_marked_by_reason_event_aggregate_or_all() {
    let database = migrated_database().await;
    let pool = &database.pool;
    sqlx::query("insert into tidings.relay (name, position) values ('billing', '{}')")
        .execute(pool)
        .await
        .expect("a relay");
    // Aggregate 1: too large, and two that wait. Aggregate 2: too large. Aggregate 3: no topic.
    sqlx::query(
        "insert into tidings.parked (relay, seq, id, aggregatetype, aggregateid, topic, reason)
         values ('billing', 1, gen_random_uuid(), 'order', '1', 't', 'too large'),
             ('billing', 2, gen_random_uuid(), 'order', '1', 't', null),
             ('billing', 3, gen_random_uuid(), 'order', '1', 't', null),
             ('billing', 4, gen_random_uuid(), 'order', '2', 't', 'too large'),
             ('billing', 5, gen_random_uuid(), 'order', '3/x&y', 't', 'no topic')",
    )
    .execute(pool)
    .await
    .expect("parked events");
    let console = Console::with_actions(&[&database.url], None);
    let page = console.page("/console/parked");
    let find = |part: &str| {
        let found = links(&page, part);
        assert_eq!(found.len(), 1, "{part}: {found:?}");
        found[0].clone()
    };
    let marked = |action: &str| format!("parked where action = '{action}'");

    let link = find("op=retry-parked&relay=billing&reason=too+large");
    console.page(&link);
    assert_eq!(
        count(pool, &marked("retry")).await,
        0,
        "a dry run changes nothing"
    );
    carry_out(&console, &link, 2);
    assert_eq!(count(pool, &marked("retry")).await, 2);
    carry_out(
        &console,
        &find("op=discard-parked&relay=billing&aggregate=order%2F3"),
        1,
    );
    assert_eq!(count(pool, &marked("discard")).await, 1);
    let aggregate = console.page("/console/parked?relay=billing&aggregate=order/1");
    let second = links(&aggregate, "op=discard-parked&relay=billing&event=")[1].clone();
    carry_out(&console, &second, 1);
    assert_eq!(count(pool, &marked("discard")).await, 2);
    carry_out(&console, &find("op=discard-parked&relay=billing&all=1"), 5);
    assert_eq!(count(pool, &marked("discard")).await, 5);
    let log = console.log();
    for text in [
        r#""user":"ada""#,
        "retry parked of relay billing: reason too large",
        "discard parked of relay billing: order/3/x&y",
        r#""events":5"#,
    ] {
        assert!(log.contains(text), "{text}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sagas_are_retried_and_aborted_and_scheduled_events_are_cancelled() {
    let seeded = seeded("shop").await;
    let pool = &seeded.database.pool;
    let console = Console::with_actions(&[&seeded.database.url], None);
    let page = console.page(&format!("/console/sagas?saga={SAGA}"));
    assert!(
        links(&page, "op=abort-saga").is_empty(),
        "a failed saga cannot be aborted"
    );
    carry_out(&console, &links(&page, "op=retry-saga")[0], 1);
    assert_eq!(count(pool, "saga where action = 'retry'").await, 1);
    sqlx::query("update tidings.saga set status = 'running', action = null")
        .execute(pool)
        .await
        .expect("a running saga");
    let page = console.page(&format!("/console/sagas?saga={SAGA}"));
    carry_out(&console, &links(&page, "op=abort-saga")[0], 1);
    assert_eq!(count(pool, "saga where action = 'abort'").await, 1);

    // Past its pivot, a saga only goes forward: the count is the one of the action itself.
    let abort = links(&page, "op=abort-saga")[0].clone();
    let pivoted = "update tidings.saga set action = null,
        progress = (progress::jsonb || '{\"pivoted\": true}')::json";
    sqlx::query(pivoted).execute(pool).await.expect("a saga");
    let page = console.page(&format!("/console/sagas?saga={SAGA}"));
    assert!(links(&page, "op=abort-saga").is_empty(), "{page}");
    let refused = console.page(&abort);
    assert!(
        refused.contains(">0</strong>") && !refused.contains("type=\"submit\""),
        "{refused}"
    );
    carry_out(&console, &links(&page, "op=retry-saga")[0], 1);

    let page = console.page("/console/scheduled");
    let link = links(&page, &format!("op=cancel-scheduled&event={SCHEDULED}"))[0].clone();
    carry_out(&console, &link, 1);
    assert_eq!(count(pool, "scheduled").await, 0);
    let gone = console.page(&link);
    assert!(
        gone.contains(">0</strong>") && !gone.contains("type=\"submit\""),
        "{gone}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_are_paused_and_resumed_and_their_parked_events_are_marked() {
    let seeded = seeded("<b>shop</b>").await;
    let pool = &seeded.database.pool;
    let console = Console::with_actions(&[&seeded.database.url], None);
    let page = console.page("/console/subscribers");
    assert!(
        page.contains("Paused by") && !page.contains("<b>shop") && page.contains("did not confirm"),
        "{page}"
    );
    carry_out(&console, &links(&page, "op=resume-subscriber")[0], 1);
    assert_eq!(count(pool, "subscriber_control").await, 0);
    let page = console.page("/console/subscribers");
    let pause = links(&page, "op=pause-subscriber&subscriber=inventory")[0].clone();
    let form = console.page(&pause);
    assert!(form.contains("name=\"note\""), "{form}");
    assert_eq!(count(pool, "subscriber_control").await, 0, "a dry run");
    carry_out(&console, &pause, 1);
    let by: String = sqlx::query_scalar("select paused_by from tidings.subscriber_control")
        .fetch_one(pool)
        .await
        .expect("a pause");
    assert!(by.starts_with("ada in the console (role "), "{by}");

    let page = console.page("/console/parked?subscriber=inventory");
    let find = |part: &str| links(&page, part)[0].clone();
    let marked = |action: &str| format!("subscriber_parked where action = '{action}'");
    let retry = find("op=retry-subscriber-parked&subscriber=inventory&number=");
    console.page(&retry);
    assert_eq!(count(pool, &marked("retry")).await, 0, "a dry run");
    carry_out(&console, &retry, 1);
    assert_eq!(count(pool, &marked("retry")).await, 1);
    let discard = find("op=discard-subscriber-parked&subscriber=inventory&all=1");
    carry_out(&console, &discard, 1);
    assert_eq!(count(pool, &marked("discard")).await, 1);
    let page = console.page("/console/parked?subscriber=inventory");
    assert!(page.contains("discard marked"), "{page}");
    let log = console.log();
    for text in [
        "pause subscriber inventory",
        "resume subscriber inventory",
        "retry parked of subscriber inventory: number ",
        "discard parked of subscriber inventory: all",
    ] {
        assert!(log.contains(text), "{text}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_replayed_to_their_subscriber_or_discarded() {
    async fn while_broken(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
        State(broken): State<Arc<AtomicBool>>,
    ) -> Result<(), HandlerError> {
        if broken.load(Ordering::SeqCst) {
            let reason = format!("broken {}", changed.account);
            return Err(HandlerError::dead_letter(reason));
        }
        effect(&mut tx, &changed, &meta).await
    }
    let (database, place) = (migrated_database().await, place::Place::new(2).await);
    let broken = Arc::new(AtomicBool::new(true));
    create_effects(&database.pool).await;
    place.publish(3, 1..=2).await;
    let running = start!(
        place
            .subscriber()
            .on(while_broken)
            .inbox(database.pool.clone())
            .state(broken.clone())
            .retry(Retry::never())
            .kill_switch(None)
    );
    running
        .until("all are dead", |seen| seen.dead_lettered() == 6)
        .await;
    broken.store(false, Ordering::SeqCst);
    let topic = format!("{}.{}.dlt", place.topic, place.group);
    let console = Console::with_actions(&[&database.url], Some(&brokers()));
    let all = console.page("/console/dead-letters");
    assert!(all.contains(&topic), "{all}");
    let page = console.page(&format!("/console/dead-letters?topic={topic}"));
    let replay = |part: &str| {
        let found = links(&page, &format!("{part}&topic={topic}"));
        assert!(!found.is_empty(), "{part}: {page}");
        found
    };
    let of_a0 = replay("op=replay-letters")
        .into_iter()
        .find(|link| link.contains("reason=") && link.contains("+a0"))
        .expect("a reason");
    carry_out(&console, &of_a0, 2);
    until_effects(&database.pool, 2).await;
    let of_a1 = replay("op=discard-letters")
        .into_iter()
        .find(|link| link.contains("reason=") && link.contains("+a1"))
        .expect("a reason");
    carry_out(&console, &of_a1, 2);
    let all = replay("op=replay-letters")
        .into_iter()
        .find(|link| link.contains("all=1"))
        .expect("all");
    carry_out(&console, &all, 2);
    until_effects(&database.pool, 4).await;
    let page = console.page(&format!("/console/dead-letters?topic={topic}"));
    assert!(page.contains("No letter is left"), "{page}");
    assert!(
        console
            .log()
            .contains(&format!("replay dead letters of {topic}: all"))
    );
    running.stop().await;
}
