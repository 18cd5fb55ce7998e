//! Complete sagas with a relay, services and replicas.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidings::event::{Envelope, headers};
use tidings::saga::{Decision, Saga, SagaStatus, Sagas};
use tidings::subscriber::{HandlerError, Retry, Tx};
use tidings::{DomainEvent, Outbox};
use uuid::Uuid;

use crate::support::place::until;
use crate::support::shop::{
    OrderPlaced, PaymentReturned, PaymentTaken, PlaceOrder, ReserveStock, Shop, StockReserved,
    TakePayment, place_order,
};

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_complete_compensate_and_fail_sagas_and_each_effect_is_once() {
    let mut shop = Shop::open().await;
    shop.serve();
    shop.run(place_order());
    shop.run(place_order());
    shop.place([10, 20, 11, 12, 13, 18, 19]).await;
    for order in [10, 20] {
        let run = shop.until(order, SagaStatus::Completed).await;
        assert_eq!(
            (run.error, run.state["reserved"].as_bool()),
            (None, Some(true))
        );
        shop.until_effects(order, &["reserved", "paid", "confirmed"])
            .await;
    }
    let sold_out = shop.until(11, SagaStatus::Compensated).await;
    assert_eq!(
        (sold_out.undone.len(), sold_out.error.as_deref()),
        (0, Some("reserve: sold out"))
    );
    let refused = shop.until(12, SagaStatus::Compensated).await;
    assert_eq!(
        (refused.undone, refused.error.as_deref()),
        (vec!["reserve".to_owned()], Some("pay: no money"))
    );
    shop.until_effects(12, &["reserved", "released"]).await;
    // No reply arrives: the command is sent twice and then compensated, because it may have taken
    // effect.
    for attempt in [1, 2] {
        shop.let_time_pass(13, attempt).await;
    }
    let silent = shop.until(13, SagaStatus::Compensated).await;
    assert_eq!(silent.undone, ["pay", "reserve"]);
    assert_eq!(silent.error.as_deref(), Some("pay: no reply within 1800s"));
    // A local step that fails leaves no effect.
    let sunday = shop.until(18, SagaStatus::Compensated).await;
    assert_eq!(sunday.undone, ["pay", "reserve"]);
    shop.until_effects(18, &["reserved", "paid", "returned", "released"])
        .await;
    // A compensation that fails is retried and recorded, and the others still run.
    let failed = shop.until(19, SagaStatus::Failed).await;
    assert_eq!(failed.failed_compensations.len(), 1);
    assert_eq!(failed.undone, ["reserve"]);
    shop.until_effects(19, &["reserved", "paid", "released"])
        .await;
    let ended: Vec<(String, i64)> = sqlx::query_as(
        "select type, count(*) from tidings.outbox where aggregatetype = 'saga' \
            group by type order by type",
    )
    .fetch_all(&shop.database.pool)
    .await
    .expect("the query succeeds");
    assert_eq!(
        ended,
        [
            ("SagaCompensated".into(), 4),
            ("SagaCompleted".into(), 2),
            ("SagaFailed".into(), 1)
        ]
    );
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_with_other_steps_does_not_break_what_runs() {
    let mut shop = Shop::open().await;
    // No service answers yet, so both orders wait for their stock.
    let old = shop.run(place_order());
    shop.place([10, 12]).await;
    for order in [10, 12] {
        shop.until(order, SagaStatus::Running).await;
    }
    old.cancel();
    // `pay` is renamed, `check` is new and first, `confirm` is removed, and the state has another
    // shape.
    let new = Saga::<PlaceOrder>::new("place-order")
        .version(2)
        .lift(|_, mut state| {
            state["reserved"] = true.into();
            state
        })
        .starts_on::<OrderPlaced>(|placed| PlaceOrder {
            order: placed.order,
            reserved: false,
        })
        .key(|s| s.order.to_string())
        .step("check")
        .step("reserve")
        .command(|s: &PlaceOrder| ReserveStock { order: s.order })
        .on::<StockReserved>(|_, _| ())
        .compensate(|s| crate::support::shop::ReleaseStock { order: s.order })
        .step("pay")
        .command(|s| TakePayment { order: s.order })
        .on::<PaymentTaken>(|_, _| ())
        .fails_on::<crate::support::shop::PaymentRefused>(|_, _| "no money, says version 2".into())
        .retired()
        .step("charge");
    shop.run(new);
    shop.serve();
    let done = shop.until(10, SagaStatus::Completed).await;
    assert_eq!(
        (done.version, done.done),
        (2, vec!["reserve".to_owned(), "pay".to_owned()]),
        "the planned steps without the removed one"
    );
    assert_eq!(
        done.state["reserved"].as_bool(),
        Some(true),
        "the state was lifted"
    );
    let undone = shop.until(12, SagaStatus::Compensated).await;
    assert_eq!(
        (undone.undone, undone.error.as_deref()),
        (
            vec!["reserve".to_owned()],
            Some("pay: no money, says version 2")
        )
    );
    shop.place([14]).await;
    let fresh = shop.until(14, SagaStatus::Completed).await;
    assert_eq!(fresh.done, ["check", "reserve", "charge"]);
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_code_leaves_alone_what_newer_code_has_written() {
    let mut shop = Shop::open().await;
    let old = shop.run(place_order());
    shop.place([10]).await;
    shop.until(10, SagaStatus::Running).await;
    sqlx::query("update tidings.saga set version = 2, due_at = clock_timestamp()")
        .execute(&shop.database.pool)
        .await
        .expect("the update succeeds");
    shop.serve();
    shop.until_effects(10, &["reserved"]).await;
    // A later order runs next to it.
    shop.place([20]).await;
    shop.until(20, SagaStatus::Completed).await;
    assert_eq!(
        shop.until(10, SagaStatus::Running).await.step.as_deref(),
        Some("reserve")
    );
    old.cancel();
    shop.run(place_order().version(2));
    shop.until(10, SagaStatus::Completed).await;
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_sagas_that_lock_one_aggregate_the_second_waits_or_is_refused() {
    let mut shop = Shop::open().await;
    let locking = || {
        place_order()
            .key(|s| s.order.to_string())
            .locks("customer", |_| "7".into())
    };
    shop.run(locking());
    shop.place([10]).await;
    shop.until(10, SagaStatus::Running).await;
    shop.place([20]).await;
    let waiting = shop.until(20, SagaStatus::Waiting).await;
    let mut conn = shop.database.pool.acquire().await.expect("a connection");
    let first = shop
        .sagas
        .find("place-order", "10")
        .await
        .expect("the saga can be read")
        .expect("the saga exists")
        .id;
    assert_eq!(
        shop.sagas
            .holder_of(&mut conn, "customer", "7")
            .await
            .expect("the query succeeds"),
        Some(first)
    );
    let refused = locking()
        .refuse_locked()
        .start(
            &mut conn,
            PlaceOrder {
                order: 30,
                reserved: false,
            },
        )
        .await;
    assert!(
        matches!(refused, Err(tidings::saga::StartError::Locked { holder, .. }) if holder == first),
        "{refused:?}"
    );
    assert!(shop.effects(20).await.is_empty());
    shop.serve();
    let (first, second) = (
        shop.until(10, SagaStatus::Completed).await,
        shop.until(20, SagaStatus::Completed).await,
    );
    assert_eq!(second.id, waiting.id);
    assert!(second.ended_at > first.ended_at);
    assert_eq!(
        shop.sagas
            .holder_of(&mut conn, "customer", "7")
            .await
            .expect("the query succeeds"),
        None
    );
    drop(conn);
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_is_started_by_code_with_its_transaction_and_once_for_a_key() {
    let mut shop = Shop::open().await;
    shop.serve();
    shop.run(place_order());
    let (saga, state) = (place_order(), |order| PlaceOrder {
        order,
        reserved: false,
    });
    let mut tx = shop.database.pool.begin().await.expect("a transaction");
    saga.start(&mut tx, state(30))
        .await
        .expect("the saga starts");
    tx.rollback().await.expect("the rollback succeeds");
    let mut tx = shop.database.pool.begin().await.expect("a transaction");
    let first = saga
        .start(&mut tx, state(40))
        .await
        .expect("the saga starts");
    assert_eq!(
        saga.start(&mut tx, state(40))
            .await
            .expect("the saga is found"),
        first
    );
    tx.commit().await.expect("the commit succeeds");
    shop.place([40]).await;
    assert_eq!(shop.until(40, SagaStatus::Completed).await.id, first);
    until(
        "the event that starts it once more is handled",
        async || {
            let handled = "select count(*) from tidings.inbox where consumer like '%-orders' \
            and event_id in (select id::text from tidings.outbox where type = 'OrderPlaced')";
            let handled: i64 = sqlx::query_scalar(handled)
                .fetch_one(&shop.database.pool)
                .await
                .expect("the query succeeds");
            (handled == 1).then_some(())
        },
    )
    .await;
    shop.until_effects(40, &["reserved", "paid", "confirmed"])
        .await;
    assert!(
        shop.sagas
            .find("place-order", "30")
            .await
            .expect("the saga can be read")
            .is_none()
    );
    assert_eq!(
        shop.sagas
            .list(None, &[], 10)
            .await
            .expect("the saga can be read")
            .len(),
        1
    );
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_sagas_time_ends_it_though_nobody_answers() {
    let mut shop = Shop::open().await;
    shop.run(place_order().within(Duration::from_secs(1)));
    shop.place([10]).await;
    let run = shop.until(10, SagaStatus::Compensated).await;
    assert_eq!(
        (run.undone, run.error.as_deref()),
        (
            vec!["reserve".to_owned()],
            Some("reserve: the saga exceeded its time limit of 1s")
        )
    );
    shop.close().await;
}

/// A published event: its type, trace, conversation, and the type of its cause.
type Sent = (String, Option<String>, Option<String>, Option<String>);

#[tokio::test(flavor = "multi_thread")]
async fn what_time_moves_bears_the_conversation_the_cause_and_the_trace_of_the_event_before() {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let (mut shop, tried) = (Shop::open().await, Arc::new(AtomicBool::new(false)));
    shop.serve();
    // Fails the first time, so that the timer retries it and ends the saga.
    let tell = move |state: PlaceOrder, mut tx: Tx| {
        let works = tried.swap(true, Ordering::Relaxed);
        async move {
            if !works {
                return Err(HandlerError::retry("busy"));
            }
            tx.publish(&PaymentReturned { order: state.order }).await?;
            Ok(state)
        }
    };
    shop.run(
        place_order()
            .step("tell")
            .local(tell)
            .retry(Retry::exponential(
                2,
                Duration::from_millis(10)..Duration::from_millis(10),
            )),
    );
    let mut placed = Vec::new();
    for order in [10, 13] {
        let mut conn = shop.database.pool.acquire().await.expect("a connection");
        placed.push(
            Outbox::new()
                .allow_autocommit()
                .event(&OrderPlaced { order })
                .traceparent(TRACE)
                .publish(&mut conn)
                .await
                .expect("the event is published"),
        );
    }
    let told = shop.until(10, SagaStatus::Completed).await;
    for attempt in [1, 2] {
        shop.let_time_pass(13, attempt).await;
    }
    let silent = shop.until(13, SagaStatus::Compensated).await;
    let sent = async |saga: Uuid, of: &[&str]| -> Vec<Sent> {
        let sql = "select sent.type, sent.headers ->> 'traceparent', sent.headers ->> \
            'correlationid', cause.type from tidings.outbox sent
            left join tidings.outbox cause on cause.id::text = sent.headers ->> 'causationid'
            where sent.type = any ($2) and (sent.headers ->> 'correlationid' = $1 or \
            sent.aggregateid = $1) order by sent.seq";
        sqlx::query_as(sql)
            .bind(saga.to_string())
            .bind(of)
            .fetch_all(&shop.database.pool)
            .await
            .expect("the query succeeds")
    };
    let row = |what: &str, saga: Uuid, cause: &str| {
        (
            what.to_owned(),
            Some(TRACE.to_owned()),
            Some(saga.to_string()),
            Some(cause.to_owned()),
        )
    };
    assert_eq!(
        sent(told.id, &["PaymentReturned"]).await,
        [row("PaymentReturned", told.id, "PaymentTaken")],
        "by the step itself"
    );
    let [(_, trace, conversation, cause)] = &sent(told.id, &["SagaCompleted"]).await[..] else {
        panic!("expected exactly one end")
    };
    assert_eq!(
        (trace.as_deref(), cause.as_deref()),
        (Some(TRACE), Some("PaymentTaken"))
    );
    assert_eq!(
        conversation.as_deref(),
        Some(&*placed[0].to_string()),
        "its end belongs to the conversation that started it"
    );
    let again = row("TakePayment", silent.id, "StockReserved");
    let undone = row("ReturnPayment", silent.id, "StockReserved");
    assert_eq!(
        sent(silent.id, &["TakePayment", "ReturnPayment"]).await,
        [again.clone(), again, undone]
    );
    shop.close().await;
}

#[tokio::test]
async fn a_reply_does_not_take_away_what_a_person_has_decided() {
    let (database, mut bus) = (
        crate::support::services::migrated_database().await,
        tidings::testing::TestBus::new(),
    );
    bus.add(
        bus.subscriber::<()>("orders")
            .saga(place_order())
            .inbox(database.pool.clone()),
    )
    .await;
    bus.publish(&OrderPlaced { order: 10 });
    bus.settle().await;
    let sagas = Sagas::new(database.pool.clone());
    let id = sagas
        .find("place-order", "10")
        .await
        .expect("the saga can be read")
        .expect("the saga exists")
        .id;
    assert!(
        sagas
            .decide(id, Decision::Abort)
            .await
            .expect("the decision is stored")
    );
    let mut reply = Envelope::of(&StockReserved { order: 10 }).expect("a valid event");
    reply
        .headers
        .insert(headers::CORRELATION_ID, id.to_string());
    bus.publish_envelope(&reply);
    bus.settle().await;
    let run = sagas
        .get(id)
        .await
        .expect("the saga can be read")
        .expect("the saga exists");
    assert_eq!(
        (run.step.as_deref(), run.action.as_deref()),
        (Some("pay"), Some("abort"))
    );
    assert!(
        run.due_at
            .is_some_and(|due| due <= chrono::Utc::now() + Duration::from_secs(1)),
        "at once: {:?}",
        run.due_at
    );
}

#[tokio::test]
async fn dying_before_any_commit_and_events_that_come_twice_and_in_any_order_change_nothing() {
    for seed in 0..5 {
        let (database, mut bus) = (
            crate::support::services::migrated_database().await,
            tidings::testing::TestBus::new(),
        );
        sqlx::query("create table effect (order_id bigint, what text)")
            .execute(&database.pool)
            .await
            .expect("a new table");
        bus.add(
            bus.subscriber::<()>("orders")
                .saga(place_order())
                .inbox(database.pool.clone()),
        )
        .await;
        bus.add(
            bus.subscriber("inventory")
                .on(crate::support::shop::reserve)
                .on(crate::support::shop::release)
                .inbox(database.pool.clone()),
        )
        .await;
        bus.add(
            bus.subscriber("payments")
                .on(crate::support::shop::pay)
                .on(crate::support::shop::give_back)
                .inbox(database.pool.clone()),
        )
        .await;
        bus.deliver_twice()
            .deliver_out_of_order(seed)
            .crash_before_commit(25);
        for order in [10, 11, 12, 18, 20, 28] {
            bus.publish(&OrderPlaced { order });
        }
        bus.settle().await;
        let found: Vec<(String, i64)> = sqlx::query_as(
            "select status || coalesce(': ' || error, ''), count(*) from tidings.saga group by 1
             union all select what, count(*) from effect group by 1 order by 1",
        )
        .fetch_all(&database.pool)
        .await
        .expect("the query succeeds");
        let expected = [
            ("compensated: confirm: not on a Sunday", 2),
            ("compensated: pay: no money", 1),
            ("compensated: reserve: sold out", 1),
            ("completed", 2),
            ("confirmed", 2),
            ("paid", 4),
            ("released", 3),
            ("reserved", 5),
            ("returned", 2),
        ];
        assert_eq!(
            found,
            expected.map(|(what, count)| (what.to_owned(), count)),
            "seed {seed}"
        );
    }
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "basket", id = "order")]
struct BasketBought {
    order: i64,
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "saga", id = "saga_id", type = "SagaCompleted")]
struct OrderDone {
    saga_id: Uuid,
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "saga", id = "saga_id", type = "SagaCompensated")]
struct OrderUndone {
    saga_id: Uuid,
    error: String,
}

#[tokio::test]
async fn a_saga_can_be_a_step_of_another_one() {
    let buy = Saga::<i64>::new("buy")
        .starts_on::<BasketBought>(|basket| basket.order)
        .key(|order| order.to_string())
        .step("place")
        .command(|order| OrderPlaced { order: *order })
        .on::<OrderDone>(|_, _| ())
        .fails_on::<OrderUndone>(|_, undone| undone.error);
    let (database, mut bus) = (
        crate::support::services::migrated_database().await,
        tidings::testing::TestBus::new(),
    );
    sqlx::query("create table effect (order_id bigint, what text)")
        .execute(&database.pool)
        .await
        .expect("a new table");
    bus.add(
        bus.subscriber::<()>("orders")
            .saga(place_order())
            .saga(buy)
            .inbox(database.pool.clone()),
    )
    .await;
    bus.add(
        bus.subscriber("inventory")
            .on(crate::support::shop::reserve)
            .on(crate::support::shop::release)
            .inbox(database.pool.clone()),
    )
    .await;
    bus.add(
        bus.subscriber("payments")
            .on(crate::support::shop::pay)
            .on(crate::support::shop::give_back)
            .inbox(database.pool.clone()),
    )
    .await;
    bus.publish(&BasketBought { order: 10 });
    bus.publish(&BasketBought { order: 12 });
    bus.settle().await;
    let sagas = Sagas::new(database.pool.clone());
    let status = async |key: &str| {
        let run = sagas
            .find("buy", key)
            .await
            .expect("the saga can be read")
            .expect("the saga exists");
        (run.status, run.error)
    };
    assert_eq!(status("10").await, (SagaStatus::Completed, None));
    assert_eq!(
        status("12").await,
        (SagaStatus::Compensated, Some("place: no money".into()))
    );
}

#[tokio::test]
async fn a_saga_that_does_not_wait_for_a_lock_ends_before_its_first_step() {
    let (database, mut bus) = (
        crate::support::services::migrated_database().await,
        tidings::testing::TestBus::new(),
    );
    let saga = place_order()
        .locks("customer", |_| "7".into())
        .refuse_locked();
    bus.add(
        bus.subscriber::<()>("orders")
            .saga(saga)
            .inbox(database.pool.clone()),
    )
    .await;
    for order in [10, 20] {
        bus.publish(&OrderPlaced { order });
        bus.settle().await;
    }
    let sagas = Sagas::new(database.pool.clone());
    let holder = sagas
        .find("place-order", "10")
        .await
        .expect("the saga can be read")
        .expect("the saga exists");
    let refused = sagas
        .find("place-order", "20")
        .await
        .expect("the saga can be read")
        .expect("the saga exists");
    assert_eq!(
        (holder.status, refused.status),
        (SagaStatus::Running, SagaStatus::Compensated)
    );
    assert_eq!(
        refused.failure.map(|failure| failure.error),
        Some(format!("customer/7 is held by saga {}", holder.id))
    );
    assert_eq!(
        (bus.published::<ReserveStock>().len(), refused.locks.len()),
        (1, 0)
    );
    bus.assert_published::<tidings::saga::SagaEnded>(|ended| {
        ended.key == "20" && ended.outcome == SagaStatus::Compensated
    });
}
