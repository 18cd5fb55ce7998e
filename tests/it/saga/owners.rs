//! Ownership of a saga's name by one subscriber.

use tidings::saga::{Saga, SagaStatus};
use tidings::subscriber::{RunError, Tx};
use tidings::{Bus, kafka};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::local::{Number, Service, effect};
use super::operator::{shown, tidings};
use crate::support::place::{self, PATIENCE, until};

fn booking(steps: &[&'static str]) -> Saga<Number> {
    steps.iter().copied().fold(Saga::new("book"), |saga, step| {
        saga.step(step).local(move |number, mut tx: Tx| async move {
            effect(&mut tx, number, step).await?;
            Ok(number)
        })
    })
}

/// Runs sagas with a subscriber of this name until `stop` is cancelled.
fn run(
    service: &Service,
    group: &str,
    sagas: Vec<Saga<Number>>,
    stop: &CancellationToken,
) -> tokio::task::JoinHandle<Result<(), RunError>> {
    let bus = Bus::new(kafka::Settings {
        brokers: "127.0.0.1:1".into(),
        ..Default::default()
    });
    let subscriber = sagas.into_iter().fold(
        bus.subscriber::<()>(group)
            .inbox(service.database.pool.clone()),
        |all, saga| all.saga(saga),
    );
    tokio::spawn(subscriber.run(stop.clone()))
}

async fn refused(running: tokio::task::JoinHandle<Result<(), RunError>>) -> String {
    place::refused(async { running.await.expect("the task does not panic") }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_definition_of_a_name_is_refused_at_start_and_a_new_version_or_a_renamed_subscriber_is_not()
 {
    let (mut service, stop) = (Service::open().await, CancellationToken::new());
    service.run(&booking(&["book", "bill"]));
    let id = service.start(&booking(&["book", "bill"]), 1).await;
    service.until(id, SagaStatus::Completed).await;
    let reason = refused(run(&service, "guests", vec![booking(&["invite"])], &stop)).await;
    for part in [
        "saga `book`",
        "`service` runs it",
        "book, bill",
        "`guests`",
        "invite",
        "tidings sagas disown book --subscriber service",
    ] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    // The name belongs to its owner even while the owner is down.
    service.stop().await;
    let reason = refused(run(&service, "guests", vec![booking(&["invite"])], &stop)).await;
    assert!(reason.contains("another definition"), "{reason}");
    // A new version of the owner, then a changed definition with the same version.
    for next in [
        booking(&["book", "send"]).version(2),
        booking(&["book"]).version(2),
    ] {
        service.run(&next);
        let id = service.start(&next, 2).await;
        service.until(id, SagaStatus::Completed).await;
        service.stop().await;
    }
    // The subscriber is renamed: first with the same definition, then with a change.
    for next in [
        booking(&["book"]).version(2),
        booking(&["reserve"]).version(3),
    ] {
        let (renamed, id) = (
            run(&service, "bookings", vec![next.clone()], &stop),
            service.start(&next, 3).await,
        );
        service.until(id, SagaStatus::Completed).await;
        renamed.abort();
    }
    let (code, _, error) = tidings(
        &service.database,
        &[
            "sagas",
            "disown",
            "book",
            "--subscriber",
            "bookings",
            "--yes",
        ],
    )
    .await;
    assert_eq!(code, 3, "one that ran within the last minute: {error}");
    let later = "update tidings.saga_code set seen_at = now() - interval '2 minutes'";
    sqlx::query(later)
        .execute(&service.database.pool)
        .await
        .expect("the update succeeds");
    for owner in ["bookings", "service"] {
        assert_eq!(
            tidings(
                &service.database,
                &["sagas", "disown", "book", "--subscriber", owner, "--yes"]
            )
            .await
            .0,
            0
        );
    }
    let (other, id) = (
        run(&service, "guests", vec![booking(&["invite"])], &stop),
        service.start(&booking(&["invite"]), 4).await,
    );
    service.until(id, SagaStatus::Completed).await;
    other.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sagas_of_one_name_in_one_subscriber_are_refused() {
    let (service, stop) = (Service::open().await, CancellationToken::new());
    let reason = refused(run(
        &service,
        "service",
        vec![booking(&["book"]), booking(&["bill"])],
        &stop,
    ))
    .await;
    assert!(reason.contains("two sagas are called `book`"), "{reason}");
}

/// Two definitions start at the same moment, and one of them is refused.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_definitions_that_start_at_once_one_is_refused() {
    let (service, stop) = (Service::open().await, CancellationToken::new());
    let one = run(&service, "guests", vec![booking(&["invite"])], &stop);
    let two = run(&service, "bookings", vec![booking(&["book"])], &stop);
    let ended = tokio::select! {
        ended = one => ended,
        ended = two => ended,
        () = tokio::time::sleep(PATIENCE) => panic!("both run"),
    };
    assert!(matches!(
        ended.expect("the task does not panic"),
        Err(RunError::Settings(_))
    ));
    stop.cancel();
}

/// Code without a subscriber starts a saga with another definition.
#[tokio::test(flavor = "multi_thread")]
async fn a_saga_that_another_definition_has_started_is_not_completed_without_its_steps() {
    let mut service = Service::open().await;
    let id: Uuid = service.start(&booking(&["invite", "seat"]), 1).await;
    service.run(&booking(&["book"]));
    let obstacle = until("the saga is reported", async || {
        shown(&service.database, &id.to_string()).await["obstacle"]
            .as_str()
            .map(str::to_owned)
    })
    .await;
    assert!(
        obstacle.contains("has none of its steps (invite, seat)"),
        "{obstacle}"
    );
    let own = service.start(&booking(&["book"]), 2).await;
    service.until(own, SagaStatus::Completed).await;
    service.until(id, SagaStatus::Waiting).await;
    service.stop().await;
    service.run(&booking(&["invite", "seat"]).version(2));
    service.until(id, SagaStatus::Completed).await;
    service.stop().await;
    assert_eq!(service.effects().await, ["book", "invite", "seat"]);
}
