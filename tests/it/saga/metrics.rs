//! Metrics of sagas.

use std::time::Duration;

use tidings::saga::{Saga, SagaMetrics, SagaStatistics, SagaStatus};
use tidings::subscriber::{HandlerError, Retry};

use super::local::{Number, Service, refuse};
use crate::subscriber::observing::scraped;
use crate::support::place::until;

/// Returns the metrics of sagas as text.
fn shown(statistics: &SagaStatistics) -> String {
    scraped(|registry| SagaMetrics::default().saga(statistics).register(registry))
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_show_how_sagas_end_what_steps_take_and_which_are_stuck() {
    let mut service = Service::open().await;
    // Saga 1 completes, 2 is compensated, 3 fails, and 4 is never due.
    let saga = Saga::<Number>::new("book")
        .step("book")
        .local(async |number, _| Ok(number))
        .compensate_local(async |number, _| {
            if number == 3 {
                Err(HandlerError::retry("kept"))
            } else {
                Ok(number)
            }
        })
        .retry(Retry::exponential(
            2,
            Duration::from_millis(10)..Duration::from_millis(10),
        ))
        .step("wait")
        .local(async |number, _| {
            if number == 4 {
                std::future::pending().await
            } else {
                Ok(number)
            }
        })
        .timeout(Duration::from_millis(200))
        .retry(Retry::never())
        .step("refuse")
        .local(async |number, tx| {
            if number > 1 {
                refuse(number, tx).await
            } else {
                Ok(number)
            }
        });
    let statistics = saga.statistics();
    let stuck = service.start(&saga, 9).await;
    sqlx::query(
        "update tidings.saga set version = 2, due_at = due_at - interval '1 hour', \
        updated_at = updated_at - interval '2 hours' where id = $1",
    )
    .bind(stuck)
    .execute(&service.database.pool)
    .await
    .expect("the statement succeeds");
    let ends = [
        SagaStatus::Completed,
        SagaStatus::Compensated,
        SagaStatus::Failed,
        SagaStatus::Compensated,
    ];
    let mut ids = Vec::new();
    for (number, end) in (1..).zip(ends) {
        ids.push((service.start(&saga, number).await, end));
    }
    service.run(&saga);
    for (id, end) in ids {
        service.until(id, end).await;
    }
    service.stop().await;
    service.run(&saga);
    for text in [
        r#"tidings_saga_begun_total{saga="book"} 4"#,
        r#"tidings_saga_ended_total{saga="book",outcome="completed"} 1"#,
        r#"tidings_saga_ended_total{saga="book",outcome="compensated"} 2"#,
        r#"tidings_saga_ended_total{saga="book",outcome="failed"} 1"#,
        r#"tidings_saga_step_seconds_count{saga="book",step="book",direction="forward"} 4"#,
        r#"tidings_saga_step_seconds_count{saga="book",step="book",direction="backward"} 2"#,
        r#"tidings_saga_step_seconds_count{saga="book",step="wait",direction="forward"} 3"#,
        r#"tidings_saga_retries_total{saga="book",step="book",direction="backward"} 1"#,
        r#"tidings_saga_retries_total{saga="book",step="book",direction="forward"} 0"#,
        r#"tidings_saga_timeouts_total{saga="book",step="wait",direction="forward"} 1"#,
        r#"tidings_saga_current{saga="book",status="waiting"} 1"#,
        r#"tidings_saga_current{saga="book",status="running"} 0"#,
        r#"tidings_saga_current{saga="book",status="failed"} 1"#,
    ] {
        let said = format!("{text} in\n{}", shown(&statistics));
        until(&said, async || {
            shown(&statistics)
                .lines()
                .any(|line| line == text)
                .then_some(())
        })
        .await;
    }
    let standing = statistics.standing();
    assert!(
        (7_200.0..9_000.0).contains(&standing.idle_seconds_max),
        "{standing:?}"
    );
    assert!(
        (3_600.0..5_400.0).contains(&standing.overdue_seconds_max),
        "{standing:?}"
    );
    service.stop().await;
}
