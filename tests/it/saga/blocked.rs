//! Sagas that the code cannot continue, next to others that it can.

use tidings::saga::{Saga, SagaStatus};
use tidings::subscriber::Tx;
use uuid::Uuid;

use super::local::{Number, Service, effect};
use super::operator::{shown, tidings};
use crate::support::place::until;
use crate::support::shop::TakePayment;

fn booking() -> Saga<Number> {
    Saga::new("book")
        .step("book")
        .local(async |number, mut tx: Tx| {
            effect(&mut tx, number, "booked").await?;
            Ok(number)
        })
}

async fn until_obstacle(service: &Service, id: Uuid) -> String {
    until("the saga is reported", async || {
        shown(&service.database, &id.to_string()).await["obstacle"]
            .as_str()
            .map(str::to_owned)
    })
    .await
}

async fn change(service: &Service, id: Uuid, change: &str) {
    let sql = sqlx::AssertSqlSafe(format!("update tidings.saga set {change} where id = $1"));
    sqlx::query(sql)
        .bind(id)
        .execute(&service.database.pool)
        .await
        .expect("the update succeeds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_whose_state_cannot_be_read_is_reported_and_continued_by_code_that_can() {
    let mut service = Service::open().await;
    let (unread, ended) = (
        service.start(&booking(), 1).await,
        service.start(&booking(), 2).await,
    );
    for id in [unread, ended] {
        change(&service, id, r#"state = '{"number": 1}'"#).await;
    }
    service.run(&booking());
    let obstacle = until_obstacle(&service, unread).await;
    assert!(obstacle.contains("cannot read its state"), "{obstacle}");
    let own = service.start(&booking(), 3).await;
    service.until(own, SagaStatus::Completed).await;
    let (_, check, _) = tidings(&service.database, &["check"]).await;
    assert!(
        check.contains("2 of book cannot be continued: version 1 cannot read its state"),
        "{check}"
    );
    // An operator can still end the saga.
    assert_eq!(
        tidings(
            &service.database,
            &["sagas", "abort", "--force", &ended.to_string(), "--yes"]
        )
        .await
        .0,
        0
    );
    service.until(ended, SagaStatus::Failed).await;
    service.stop().await;
    service.run(
        &booking()
            .version(2)
            .lift(|_, state| state["number"].clone()),
    );
    let done = service.until(unread, SagaStatus::Completed).await;
    assert_eq!(
        shown(&service.database, &done.id.to_string()).await["obstacle"],
        serde_json::Value::Null
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_whose_progress_cannot_be_read_keeps_no_other_waiting_and_is_listed() {
    let mut service = Service::open().await;
    let unread = service.start(&booking(), 1).await;
    change(&service, unread, r#"progress = '{"status": "elsewhere"}'"#).await;
    let own = service.start(&booking(), 2).await;
    service.run(&booking());
    service.until(own, SagaStatus::Completed).await;
    let obstacle = until_obstacle(&service, unread).await;
    assert!(obstacle.contains("cannot read its progress"), "{obstacle}");
    let (code, list, error) = tidings(&service.database, &["sagas", "list"]).await;
    assert_eq!(code, 0, "{error}");
    assert!(list.contains(&unread.to_string()), "{list}");
    assert_eq!(
        tidings(
            &service.database,
            &["sagas", "abort", "--force", &unread.to_string(), "--yes"]
        )
        .await
        .0,
        0
    );
    service.until(unread, SagaStatus::Failed).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sagas_whose_command_panics_keep_no_other_waiting() {
    let mut service = Service::open().await;
    let saga = Saga::<Number>::new("send")
        .step("send")
        .command(|number: &Number| {
            assert!(*number > 5, "no such number");
            TakePayment { order: *number }
        });
    // More than the number of sagas that run at once.
    for number in 0..=5 {
        service.start(&saga, number).await;
    }
    let good = service.start(&saga, 6).await;
    service.run(&saga);
    service.until(good, SagaStatus::Completed).await;
    let errors: Vec<String> = until("the others report their reasons", async || {
        let errors: Vec<String> =
            sqlx::query_scalar("select error from tidings.saga where error is not null")
                .fetch_all(&service.database.pool)
                .await
                .expect("the query succeeds");
        (errors.len() == 6).then_some(errors)
    })
    .await;
    assert!(
        errors.iter().all(|error| error.contains("no such number")),
        "{errors:?}"
    );
    service.stop().await;
}

/// A command that is larger than any record may be.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, tidings::DomainEvent)]
#[event(aggregate = "payment", id = "order")]
struct TakeMuch {
    order: i64,
    note: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_be_sent_fails_its_step() {
    let mut service = Service::open().await;
    let saga = Saga::<Number>::new("much")
        .step("book")
        .local(async |number, _| Ok(number))
        .compensate_local(async |number, mut tx: Tx| {
            effect(&mut tx, number, "undone").await?;
            Ok(number)
        })
        .step("take")
        .command(|number: &Number| TakeMuch {
            order: *number,
            note: "x".repeat(64 << 20),
        });
    let id = service.start(&saga, 1).await;
    service.run(&saga);
    let run = service.until(id, SagaStatus::Compensated).await;
    let error = run.error.expect("the saga has an error");
    assert!(
        error.starts_with("take: the command cannot be sent: ") && error.contains("bytes"),
        "{error}"
    );
    service.stop().await;
    assert_eq!(service.effects().await, ["undone"]);
}
