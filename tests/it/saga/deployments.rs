//! Replies that arrive at a version of the code that does not know them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidings::event::{Envelope, headers};
use tidings::health::{Health, SubscriberCheck};
use tidings::saga::{Saga, SagaStatus};
use tidings::{DomainEvent, Outbox};

use super::operator::{shown, tidings};
use crate::support::place::until;
use crate::support::shop::{
    PaymentReturned, PaymentTaken, PlaceOrder, ReleaseStock, ReturnPayment, Shop, TakePayment,
    place_order, reserving,
};

/// An event in the conversation of a saga that is not a reply.
#[derive(Clone, Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "payment", id = "order")]
struct PaymentNoted {
    order: i64,
}

fn named(name: &str, version: u32) -> Saga<PlaceOrder> {
    reserving(name)
        .version(version)
        .compensate(|s| ReleaseStock { order: s.order })
}

/// Version 2 of the shop's saga: no step `pay`, but still a reply from the topic of payments.
fn without_pay() -> Saga<PlaceOrder> {
    named("place-order", 2)
        .step("settle")
        .command(|s| ReturnPayment { order: s.order })
        .on::<PaymentReturned>(|_, _| ())
}

/// Version 3: `pay` remains for sagas that are at this step.
fn with_retired_pay() -> Saga<PlaceOrder> {
    named("place-order", 3)
        .step("pay")
        .command(|s| TakePayment { order: s.order })
        .on::<PaymentTaken>(|_, _| ())
        .retired()
        .step("confirm")
}

/// Returns a shop with order 10 at `pay` and the id of its saga. No service runs the saga.
async fn left_at_pay() -> (Shop, String) {
    let mut shop = Shop::open().await;
    shop.serve_stock();
    let old = shop.deploy(place_order());
    shop.place([10]).await;
    let saga = shop.until_at(10, "pay").await.id.to_string();
    old.stop().await;
    (shop, saga)
}

/// Waits until the reply to `pay` is parked.
async fn until_kept(shop: &Shop) {
    until("the reply is kept", async || {
        (shop.parked().await == ["PaymentTaken"]).then_some(())
    })
    .await;
}

async fn publish_for(shop: &Shop, saga: &str, event: &impl DomainEvent) {
    let mut envelope = Envelope::of(event).expect("a valid event");
    envelope.headers.insert(headers::CORRELATION_ID, saga);
    let mut tx = shop.database.pool.begin().await.expect("a transaction");
    Outbox::new()
        .publish_envelope(&mut tx, &envelope)
        .await
        .expect("the event is published");
    tx.commit().await.expect("the commit succeeds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_to_a_step_that_a_deployment_removed_is_kept_for_code_that_has_it() {
    let (mut shop, saga) = left_at_pay().await;

    let without = shop.deploy(without_pay());
    until("the start reports the saga", async || {
        shown(&shop.database, &saga).await["obstacle"]
            .as_str()
            .map(str::to_owned)
    })
    .await;
    publish_for(&shop, &saga, &PaymentNoted { order: 20 }).await;
    shop.serve_payments();
    until_kept(&shop).await;
    without
        .until("the event that is not a reply is skipped", |seen| {
            seen.unknown_types() >= 1
        })
        .await;
    assert_eq!(without.statistics.waiting_for_another_version(), 1);

    let obstacle = "its current step `pay` does not exist in version 2";
    let (_, list, _) = tidings(&shop.database, &["sagas", "list"]).await;
    assert!(
        list.contains("cannot be continued: its current step `pay`"),
        "{list}"
    );
    let (_, check, _) = tidings(&shop.database, &["check"]).await;
    assert!(
        check.contains(&format!("1 of place-order cannot be continued: {obstacle}")),
        "{check}"
    );
    let health = Health::new().check("orders", SubscriberCheck::new(&without.statistics));
    until("health reports it", async || {
        format!("{:?}", health.report().await)
            .contains("cannot be continued")
            .then_some(())
    })
    .await;
    assert_eq!(
        shop.until_at(10, "pay").await.version,
        1,
        "it is not overwritten"
    );
    // Other sagas continue.
    shop.place([30]).await;
    shop.until(30, SagaStatus::Completed).await;
    without.stop().await;

    let with = shop.deploy(with_retired_pay());
    let done = shop.until(10, SagaStatus::Completed).await;
    assert_eq!(done.done, ["reserve", "pay", "confirm"]);
    assert!(shown(&shop.database, &saga).await["obstacle"].is_null());
    until("nothing is kept", async || {
        shop.parked().await.is_empty().then_some(())
    })
    .await;
    with.stop().await;
    shop.close().await;
}

/// A later event of the saga's conversation is a late reply, both for code that has the step and
/// for code that does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_for_a_saga_that_ended_is_skipped_by_code_that_does_not_know_its_type() {
    let mut shop = Shop::open().await;
    shop.serve();
    let old = shop.deploy(place_order());
    shop.place([10]).await;
    let saga = shop.until(10, SagaStatus::Completed).await.id.to_string();
    old.stop().await;
    let without = shop.deploy(without_pay());
    publish_for(&shop, &saga, &PaymentTaken { order: 10 }).await;
    without
        .until("it is skipped", |seen| seen.unknown_types() >= 1)
        .await;
    assert!(shop.parked().await.is_empty());
    without.stop().await;
    shop.close().await;
}

/// The type of the reply is known, because another step waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_of_a_known_type_waits_for_code_that_has_the_step_without_losing_attempts() {
    let (mut shop, _) = left_at_pay().await;
    let renamed = || {
        named("place-order", 2)
            .step("charge")
            .command(|s| TakePayment { order: s.order })
            .on::<PaymentTaken>(|_, _| ())
    };
    let new = shop.deploy(renamed());
    shop.serve_payments();
    until_kept(&shop).await;
    assert_eq!(new.statistics.failed_attempts(), 0);
    new.stop().await;
    let both = renamed()
        .version(3)
        .step("pay")
        .command(|s| TakePayment { order: s.order })
        .on::<PaymentTaken>(|_, _| ())
        .retired();
    let with = shop.deploy(both);
    assert_eq!(
        shop.until(10, SagaStatus::Completed).await.done,
        ["reserve", "pay"]
    );
    with.stop().await;
    shop.close().await;
}

/// A saga is renamed while its runs wait for replies.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_to_a_saga_that_was_renamed_is_kept_until_its_former_definition_runs_beside_the_new_one()
 {
    let (mut shop, _) = left_at_pay().await;
    let pays = |name| {
        named(name, 1)
            .step("pay")
            .command(|s| TakePayment { order: s.order })
            .on::<PaymentTaken>(|_, _| ())
    };
    let new = shop.deploy(pays("buy"));
    shop.serve_payments();
    until_kept(&shop).await;
    let later = "update tidings.saga_code set seen_at = now() - interval '2 minutes' \
        where name = 'place-order'";
    sqlx::query(later)
        .execute(&shop.database.pool)
        .await
        .expect("the update succeeds");
    let (_, check, _) = tidings(&shop.database, &["check"]).await;
    assert!(
        check.contains("1 of place-order are open, and no service has run them"),
        "{check}"
    );
    new.stop().await;
    let (saga, former) = (pays("buy"), place_order());
    let both = crate::support::place::start!(
        shop.subscriber("orders")
            .saga(saga)
            .saga(former)
            .inbox(shop.database.pool.clone())
            .concurrency(2)
    );
    shop.until(10, SagaStatus::Completed).await;
    both.stop().await;
    shop.close().await;
}

/// A new version in a rolling deployment is not another owner.
#[tokio::test(flavor = "multi_thread")]
async fn two_versions_of_a_saga_run_side_by_side() {
    let mut shop = Shop::open().await;
    let old = shop.deploy(place_order());
    let new = shop.deploy(with_retired_pay());
    shop.serve();
    for version in [&old, &new] {
        version
            .until("both run", |seen| !seen.partitions().is_empty())
            .await;
    }
    shop.place([10, 20, 30, 40]).await;
    for order in [10, 20, 30, 40] {
        shop.until_started(order).await;
    }
    // A reply to a saga that the new version has written waits while the old version receives it.
    old.stop().await;
    for order in [10, 20, 30, 40] {
        shop.until(order, SagaStatus::Completed).await;
    }
    // Roll back to the old version.
    let old = shop.deploy(place_order());
    new.stop().await;
    old.until("the old version has the partitions", |seen| {
        seen.partitions().len() >= 6
    })
    .await;
    shop.place([50]).await;
    shop.until(50, SagaStatus::Completed).await;
    old.stop().await;
    tokio::time::timeout(Duration::from_secs(60), shop.close())
        .await
        .expect("the process ends");
}
