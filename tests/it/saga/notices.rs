//! Notifications of sagas that are due at once.

use sqlx::postgres::PgListener;
use tidings::saga::{Decision, Saga, SagaStatus};

use super::local::{Number, Service};

fn booking() -> Saga<Number> {
    Saga::new("book")
        .step("book")
        .local(async |number, _| Ok(number))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_that_code_starts_and_a_decision_are_notified_with_the_commit_that_has_them() {
    let mut service = Service::open().await;
    let mut listener = PgListener::connect_with(&service.database.pool)
        .await
        .expect("a session");
    listener
        .listen("tidings_saga")
        .await
        .expect("the listener connects");
    let mut tx = service.database.pool.begin().await.expect("a transaction");
    booking().start(&mut tx, 1).await.expect("the saga starts");
    tx.rollback().await.expect("the rollback succeeds");
    let mut tx = service.database.pool.begin().await.expect("a transaction");
    let id = booking().start(&mut tx, 2).await.expect("the saga starts");
    sqlx::query("notify tidings_saga, 'in the same transaction'")
        .execute(&mut *tx)
        .await
        .expect("the statement succeeds");
    tx.commit().await.expect("the commit succeeds");
    // The first notification is from the second transaction.
    for payload in ["tidings/book", "in the same transaction"] {
        assert_eq!(listener.recv().await.expect("a notice").payload(), payload);
    }
    assert!(
        service
            .sagas
            .decide(id, Decision::Retry)
            .await
            .expect("the decision is stored")
    );
    assert_eq!(
        listener.recv().await.expect("a notice").payload(),
        "tidings/book"
    );
    service.run(&booking());
    service.until(id, SagaStatus::Completed).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_service_listens() {
    let mut service = Service::open().await;
    service.run(&booking());
    let first = service.start(&booking(), 0).await;
    service.until(first, SagaStatus::Completed).await;
    let listening = "select count(*) from pg_stat_activity where datname = current_database() \
        and application_name = 'tidings saga notices'";
    crate::support::place::until("it listens", async || {
        let sessions: i64 = sqlx::query_scalar(listening)
            .fetch_one(&service.database.pool)
            .await
            .expect("the query succeeds");
        (sessions == 1).then_some(())
    })
    .await;
    service.stop().await;
}
