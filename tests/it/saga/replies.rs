//! Precedence of replies over timers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus_client::{encoding::text::encode, registry::Registry};
use tidings::health::{Check, Status, SubscriberCheck};
use tidings::saga::{Saga, SagaMetrics, SagaStatus};
use tidings::subscriber::{Event, HandlerError, SubscriberState};

use crate::support::place::{start, until};
use crate::support::shop::{
    PaymentTaken, PlaceOrder, ReleaseStock, ReturnPayment, Shop, TakePayment, reserving,
};

/// Returns a saga whose payment may take two seconds.
fn hasty() -> Saga<PlaceOrder> {
    reserving("place-order")
        .compensate(|s| ReleaseStock { order: s.order })
        .step("pay")
        .command(|s| TakePayment { order: s.order })
        .on::<PaymentTaken>(|_, _| ())
        .compensate(|s| ReturnPayment { order: s.order })
        .timeout(Duration::from_secs(2))
}

/// Waits until the current step of an order is overdue by the database's clock.
async fn until_overdue(shop: &Shop, order: i64) {
    until("its time is over", async || {
        let sql = "select 1 from tidings.saga where key = $1 and due_at < clock_timestamp()";
        sqlx::query_scalar::<_, i32>(sql)
            .bind(order.to_string())
            .fetch_optional(&shop.database.pool)
            .await
            .expect("the query succeeds")
    })
    .await;
}

/// Returns a shop whose orders are overdue at `pay` and whose replies wait in Kafka. No member of
/// the group runs.
async fn with_replies_that_wait(orders: &[i64]) -> Shop {
    let mut shop = Shop::open().await;
    shop.serve_stock();
    let service = shop.deploy(hasty().wait_for_replies(Duration::from_secs(300)));
    shop.place(orders.iter().copied()).await;
    for order in orders {
        shop.until_at(*order, "pay").await;
    }
    service.stop().await;
    shop.serve_payments();
    until("the replies are published", async || {
        let sql = "select count(*) from tidings.inbox where consumer like '%-payments'";
        let paid: i64 = sqlx::query_scalar(sql)
            .fetch_one(&shop.database.pool)
            .await
            .expect("the query succeeds");
        (paid == orders.len() as i64).then_some(())
    })
    .await;
    // A separate subscriber confirms that the replies are in Kafka.
    let audit = start!(
        shop.subscriber("audit")
            .on(async |_: Event<PaymentTaken>| Ok::<_, HandlerError>(()))
    );
    audit
        .until("the replies are in Kafka", |seen| {
            seen.handled() >= orders.len() as u64
        })
        .await;
    audit.stop().await;
    for order in orders {
        until_overdue(&shop, *order).await;
    }
    shop
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_that_came_while_the_service_was_away_are_handled_before_its_timers() {
    let orders: Vec<i64> = (1..=8).map(|n| n * 10).collect();
    let shop = with_replies_that_wait(&orders).await;
    // Two members: the timer of one may belong to a reply in a partition of the other.
    let members = [shop.deploy(hasty()), shop.deploy(hasty())];
    for order in orders {
        let run = shop.until_ended(order).await;
        assert_eq!(
            (run.status, run.error),
            (SagaStatus::Completed, None),
            "order {order}"
        );
    }
    for member in members {
        member.stop().await;
    }
    shop.close().await;
}

/// One member reads the reply and fails to handle it, while a timer of another member is due.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_is_parked_is_handled_before_the_timer() {
    let shop = with_replies_that_wait(&[10]).await;
    let broken = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let failing = {
        let broken = broken.clone();
        async move |_: Event<PaymentTaken>| match broken.load(std::sync::atomic::Ordering::SeqCst) {
            true => Err(HandlerError::retry("broken")),
            false => Ok(()),
        }
    };
    use tidings::subscriber::{Escalation, Retry};
    let soon = Retry::exponential(1_000, Duration::from_millis(50)..Duration::from_millis(50));
    let service = shop
        .subscriber("orders")
        .on(failing)
        .saga(hasty())
        .inbox(shop.database.pool.clone())
        .concurrency(2);
    let service = start!(
        service
            .retry(Retry::never())
            .kill_switch(None)
            .escalation(Escalation::Park(soon))
    );
    until("the reply is parked", async || {
        (shop.parked().await == ["PaymentTaken"]).then_some(())
    })
    .await;
    // The timer of another order shows that timers fire.
    shop.place([13]).await;
    let silent = shop.until_ended(13).await;
    assert_eq!(
        (silent.status, silent.error.as_deref()),
        (SagaStatus::Compensated, Some("pay: no reply within 2s"))
    );
    shop.until_at(10, "pay").await;
    broken.store(false, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(shop.until_ended(10).await.status, SagaStatus::Completed);
    service.stop().await;
    shop.close().await;
}

/// The health check and the metrics show that timers wait, and for which events.
#[tokio::test(flavor = "multi_thread")]
async fn timers_that_wait_for_replies_are_shown_by_health_and_metrics() {
    let shop = with_replies_that_wait(&[10]).await;
    let closed = Arc::new(AtomicBool::new(true));
    let stuck = {
        let closed = closed.clone();
        async move |_: Event<PaymentTaken>| match closed.load(Ordering::SeqCst) {
            true => Err(HandlerError::snooze(Duration::from_millis(100), "closed")),
            false => Ok(()),
        }
    };
    let saga = hasty().wait_for_replies(Duration::from_secs(300));
    let statistics = saga.statistics();
    assert_eq!(statistics.timers_waiting(), Duration::ZERO);
    let mut registry = Registry::default();
    SagaMetrics::default()
        .saga(&statistics)
        .register(&mut registry);
    let service = start!(
        shop.subscriber("orders")
            .on(stuck)
            .saga(saga)
            .inbox(shop.database.pool.clone())
            .concurrency(2)
    );
    let health = SubscriberCheck::new(&service.statistics);
    let text = until("the health check shows it", async || {
        match health.check().await {
            Status::Degraded(text) if text.contains("timers of saga place-order") => Some(text),
            _ => None,
        }
    })
    .await;
    assert!(
        text.contains("limit 300 s") && text.contains("events not handled yet"),
        "{text}"
    );
    assert!(statistics.timers_waiting() >= Duration::from_secs(5));
    let mut metrics = String::new();
    encode(&mut metrics, &registry).expect("a scrape");
    let line = metrics
        .lines()
        .find(|line| line.starts_with("tidings_saga_timers_waiting_seconds{"));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    assert!(value >= Some(5.0), "{metrics}");
    closed.store(false, Ordering::SeqCst);
    assert_eq!(shop.until_ended(10).await.status, SagaStatus::Completed);
    until("nothing waits any more", async || {
        let is_ok = matches!(health.check().await, Status::Ok(_));
        (is_ok && statistics.timers_waiting().is_zero()).then_some(())
    })
    .await;
    service.stop().await;
    shop.close().await;
}

/// A paused or lagging group does not hold timers forever.
#[tokio::test(flavor = "multi_thread")]
async fn a_timer_fires_at_the_limit_though_replies_are_not_handled() {
    let shop = with_replies_that_wait(&[10]).await;
    // The first reply blocks its partition and thereby the commits of the group.
    let stuck = async |_: Event<PaymentTaken>| {
        Err::<(), _>(HandlerError::snooze(Duration::from_secs(3_600), "closed"))
    };
    let saga = hasty().wait_for_replies(Duration::from_secs(3));
    let service = start!(
        shop.subscriber("orders")
            .on(stuck)
            .saga(saga)
            .inbox(shop.database.pool.clone())
            .concurrency(2)
    );
    let run = shop.until_ended(10).await;
    assert_eq!(
        (run.status, run.error.as_deref()),
        (SagaStatus::Compensated, Some("pay: no reply within 2s"))
    );
    service.stop().await;
    shop.close().await;
}

/// The reply arrives after the time of its step is over, while an operator pauses the subscriber.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_saga_does_not_time_out_and_reads_its_replies_first() {
    let mut shop = Shop::open().await;
    shop.serve_stock();
    let service = shop.deploy(hasty());
    shop.place([10]).await;
    shop.until_at(10, "pay").await;
    let pause = "insert into tidings.subscriber_control (consumer, paused_by) \
        select consumer, 'ada' from tidings.saga_code";
    sqlx::query(pause)
        .execute(&shop.database.pool)
        .await
        .expect("a pause");
    service
        .until("it is paused", |seen| {
            seen.state() == SubscriberState::PausedByOperator
        })
        .await;
    // A timer that fires is processed within a second of its time.
    until("its time is long over", async || {
        let sql = "select 1 from tidings.saga where key = '10' \
            and due_at < clock_timestamp() - interval '4 seconds'";
        sqlx::query_scalar::<_, i32>(sql)
            .fetch_optional(&shop.database.pool)
            .await
            .expect("the query succeeds")
    })
    .await;
    let replied = shop.until_at(10, "pay").await;
    assert_eq!(replied.status, SagaStatus::Running);
    shop.serve_payments();
    let audit = start!(
        shop.subscriber("audit")
            .on(async |_: Event<PaymentTaken>| Ok::<_, HandlerError>(()))
    );
    audit
        .until("the reply is in Kafka", |seen| seen.handled() == 1)
        .await;
    audit.stop().await;
    sqlx::query("delete from tidings.subscriber_control")
        .execute(&shop.database.pool)
        .await
        .expect("the end of the pause");
    let run = shop.until_ended(10).await;
    assert_eq!((run.status, run.error), (SagaStatus::Completed, None));
    service.stop().await;
    shop.close().await;
}
