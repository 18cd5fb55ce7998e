//! The grants that `tidings grants subscriber --sagas` prints are sufficient for a service with
//! sagas, and each of them is required.

use std::time::Duration;

use tidings::saga::{Saga, SagaStatus};
use tidings::subscriber::{HandlerError, Tx};

use super::local::{Number, Service, effect};
use crate::support::rights::{Rights, run};
use crate::support::shop::ReserveStock;

/// Returns a saga with every feature: local and remote steps, compensation, locks, a published end
/// and retention.
fn all_of_it() -> Saga<Number> {
    Saga::new("all")
        .locks("number", |_| "one".into())
        .keep(Duration::ZERO)
        .step("effect")
        .local(async |number, mut tx: Tx| {
            effect(&mut tx, number, "done").await?;
            Ok(number)
        })
        .compensate_local(async |number, mut tx: Tx| {
            effect(&mut tx, number, "undone").await?;
            Ok(number)
        })
        .step("send")
        .command(|number| ReserveStock { order: *number })
        .step("end")
        .local(async |number, _| {
            if number % 2 == 0 {
                Ok(number)
            } else {
                Err(HandlerError::dead_letter("odd"))
            }
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_sagas_needs_exactly_the_documented_grants() {
    let mut service = Service::open().await;
    let arguments = ["subscriber", "order", "--group", "service", "--sagas"];
    let rights = Rights::of(&service.database, &arguments);
    rights.grant(&service.database.pool).await;
    let role = rights.role.clone();
    run(
        &service.database.pool,
        format!("grant insert on effect to {role}"),
    )
    .await;
    let (saga, pool) = (all_of_it(), service.database.pool_as(&role).await);
    let started = async |number| {
        let mut conn = pool.acquire().await.expect("a connection");
        saga.start(&mut conn, number).await
    };
    let (even, odd) = (
        started(2).await.expect("the service starts"),
        started(3).await.expect("the service starts"),
    );
    service.run_on(&saga, pool.clone());
    crate::support::place::until("both have ended", async || {
        let ended = "select count(*) from tidings.outbox \
            where type in ('SagaCompleted', 'SagaCompensated')";
        let ended: i64 = sqlx::query_scalar(ended)
            .fetch_one(&service.database.pool)
            .await
            .expect("the query succeeds");
        (ended == 2).then_some(())
    })
    .await;
    service.stop().await;
    service.run_on(&saga, pool.clone());
    crate::support::place::until("both are forgotten", async || {
        let left = [
            service.sagas.get(even).await.expect("the saga can be read"),
            service.sagas.get(odd).await.expect("the saga can be read"),
        ];
        left.iter().all(Option::is_none).then_some(())
    })
    .await;
    service.stop().await;

    // Without one of these rights, a saga that the owner starts does not continue or is not
    // deleted.
    for right in &rights.sql {
        let Some(table) = right.object.strip_prefix("tidings.saga") else {
            continue;
        };
        let (pool_of_owner, privilege) = (&service.database.pool, right.privilege.as_str());
        right.revoke(pool_of_owner).await;
        let refused = match privilege {
            // Without the right to register, a service does not start.
            _ if table == "_code" => {
                let bus = tidings::Bus::new(tidings::kafka::Settings {
                    brokers: "127.0.0.1:1".into(),
                    ..Default::default()
                });
                let running = bus
                    .subscriber::<()>("service")
                    .saga(saga.clone())
                    .inbox(pool.clone());
                let ended = tokio::time::timeout(
                    crate::support::place::PATIENCE,
                    running.run(Default::default()),
                )
                .await;
                matches!(
                    ended.expect("it does not run"),
                    Err(tidings::subscriber::RunError::Settings(_))
                )
            }
            "insert" => started(4).await.is_err(),
            _ => {
                let id = service.start(&saga, 4).await;
                service.run_on(&saga, pool.clone());
                tokio::time::sleep(Duration::from_secs(2)).await;
                service.stop().await;
                // The next service that starts deletes the ended saga.
                service.run_on(&saga, pool.clone());
                tokio::time::sleep(Duration::from_secs(1)).await;
                service.stop().await;
                service
                    .sagas
                    .get(id)
                    .await
                    .expect("the saga can be read")
                    .is_some_and(|run| privilege == "delete" || run.status != SagaStatus::Completed)
            }
        };
        assert!(refused, "without {right:?}");
        right.grant(&service.database.pool).await;
        run(
            &service.database.pool,
            "truncate tidings.saga cascade".into(),
        )
        .await;
    }
    drop(pool);
    rights.drop_role(&service.database.pool).await;
}
