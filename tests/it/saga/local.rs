//! Sagas of local steps that are started by code. They need only a database and are moved by the
//! timer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tidings::saga::{Saga, SagaRun, SagaState, SagaStatus, Sagas};
use tidings::subscriber::{HandlerError, Retry, Tx};
use tidings::{Bus, kafka};
use tokio::sync::Barrier;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::place::until;
use crate::support::services::{TestDatabase, migrated_database};

/// State of a saga: the number of the run.
pub(super) type Number = i64;

/// A service whose sagas wait for no event.
pub(super) struct Service {
    pub(super) database: TestDatabase,
    pub(super) sagas: Sagas,
    running: Vec<(CancellationToken, JoinHandle<()>)>,
}

impl Service {
    pub(super) async fn open() -> Self {
        Self::on(migrated_database().await).await
    }

    pub(super) async fn on(database: TestDatabase) -> Self {
        sqlx::query("create table effect (number bigint, what text)")
            .execute(&database.pool)
            .await
            .expect("a new table");
        Self {
            sagas: Sagas::new(database.pool.clone()),
            database,
            running: Vec::new(),
        }
    }

    /// Starts a replica that runs this saga. No Kafka listens at its address.
    pub(super) fn run<S: SagaState>(&mut self, saga: &Saga<S>) {
        self.run_on(saga, self.database.pool.clone());
    }

    pub(super) fn run_on<S: SagaState>(&mut self, saga: &Saga<S>, pool: sqlx::PgPool) {
        let (stop, bus) = (
            CancellationToken::new(),
            Bus::new(kafka::Settings {
                brokers: "127.0.0.1:1".into(),
                ..Default::default()
            }),
        );
        let running = bus
            .subscriber::<()>("service")
            .saga(saga.clone())
            .inbox(pool)
            .run(stop.clone());
        self.running.push((
            stop,
            tokio::spawn(
                async move { running.await.expect("the subscriber ends without an error") },
            ),
        ));
    }

    pub(super) async fn start<S: SagaState>(&self, saga: &Saga<S>, state: S) -> Uuid {
        let mut conn = self.database.pool.acquire().await.expect("a connection");
        saga.start(&mut conn, state).await.expect("the saga starts")
    }

    /// Waits until the saga has this status.
    pub(super) async fn until(&self, id: Uuid, status: SagaStatus) -> SagaRun {
        until(&format!("saga {id} is {status:?}"), async || {
            let run = self.sagas.get(id).await.expect("the saga can be read")?;
            (run.status == status).then_some(run)
        })
        .await
    }

    /// Returns the recorded effects, in order.
    pub(super) async fn effects(&self) -> Vec<String> {
        sqlx::query_scalar("select what from effect")
            .fetch_all(&self.database.pool)
            .await
            .expect("the query succeeds")
    }

    pub(super) async fn stop(&mut self) {
        for (stop, running) in self.running.drain(..) {
            stop.cancel();
            running.await.expect("the task does not panic");
        }
    }
}

pub(super) async fn effect(tx: &mut Tx, number: Number, what: &str) -> Result<(), HandlerError> {
    sqlx::query("insert into effect (number, what) values ($1, $2)")
        .bind(number)
        .bind(what)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// A step that is refused permanently.
pub(super) async fn refuse(_: Number, _: Tx) -> Result<Number, HandlerError> {
    Err(HandlerError::dead_letter("refused"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_that_waits_for_no_event_needs_no_kafka() {
    let mut service = Service::open().await;
    let saga = Saga::<Number>::new("book")
        .step("book")
        .local(async |number, mut tx: Tx| {
            effect(&mut tx, number, "booked").await?;
            Ok(number + 1)
        });
    service.run(&saga);
    let id = service.start(&saga, 7).await;
    let run = service.until(id, SagaStatus::Completed).await;
    assert_eq!(
        (run.state, service.effects().await),
        (8.into(), vec!["booked".to_owned()])
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_sagas_go_on_at_once_in_one_process() {
    let (mut service, barrier) = (Service::open().await, Arc::new(Barrier::new(4)));
    // No saga passes before all four have arrived.
    let saga = Saga::<Number>::new("meet")
        .step("meet")
        .local(move |number, _| {
            let barrier = barrier.clone();
            async move {
                barrier.wait().await;
                Ok(number)
            }
        });
    let mut started = Vec::new();
    for number in 0..4 {
        started.push(service.start(&saga, number).await);
    }
    service.run(&saga.concurrency(4));
    for id in started {
        service.until(id, SagaStatus::Completed).await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_timer_wakes_when_the_next_saga_is_due_and_not_at_its_next_poll() {
    // With polls alone this would take two and a half minutes, which is longer than `until` waits.
    const ATTEMPTS: u32 = 300;
    let (mut service, attempts) = (Service::open().await, Arc::new(AtomicU32::new(0)));
    let pauses = Duration::from_millis(10)..Duration::from_millis(10);
    let saga = Saga::<Number>::new("try")
        .step("try")
        .local(move |number, _| {
            let attempt = attempts.fetch_add(1, Ordering::Relaxed) + 1;
            async move {
                if attempt < ATTEMPTS {
                    Err(HandlerError::retry("not yet"))
                } else {
                    Ok(number)
                }
            }
        });
    let saga = saga.retry(Retry::exponential(ATTEMPTS, pauses));
    let id = service.start(&saga, 7).await;
    service.run(&saga);
    service.until(id, SagaStatus::Completed).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_compensation_undoes_in_the_database_and_what_a_failed_attempt_did_is_rolled_back()
{
    let (mut service, attempts) = (Service::open().await, Arc::new(AtomicU32::new(0)));
    let saga = Saga::<Number>::new("book")
        .step("book")
        .local(async |number, mut tx: Tx| {
            effect(&mut tx, number, "booked").await?;
            Ok(number + 1)
        })
        .compensate_local(move |number, mut tx: Tx| {
            let attempt = attempts.fetch_add(1, Ordering::Relaxed);
            async move {
                effect(&mut tx, number, "cancelled").await?;
                if attempt == 0 {
                    Err(HandlerError::retry("busy"))
                } else {
                    Ok(number + 10)
                }
            }
        })
        .retry(Retry::exponential(
            3,
            Duration::from_millis(10)..Duration::from_millis(10),
        ))
        .step("refuse")
        .local(refuse);
    let id = service.start(&saga, 7).await;
    service.run(&saga);
    let run = service.until(id, SagaStatus::Compensated).await;
    assert_eq!(
        (run.undone, run.error.as_deref()),
        (vec!["book".to_owned()], Some("refuse: refused"))
    );
    assert_eq!(run.state, 18, "the compensation saw and changed the state");
    assert_eq!(service.effects().await, ["booked", "cancelled"]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_step_that_panics_or_whose_statement_does_not_end_fails_in_time_and_the_timer_goes_on()
 {
    let mut service = Service::open().await;
    let saga = Saga::<Number>::new("bad")
        .step("bad")
        .local(async |number: Number, mut tx: Tx| {
            effect(&mut tx, number, "begun").await?;
            assert_ne!(number, 1, "one is too many");
            if number == 2 {
                sqlx::query("select pg_sleep(600)")
                    .execute(&mut *tx)
                    .await?;
            }
            Ok(number)
        });
    let saga = saga
        .timeout(Duration::from_millis(500))
        .retry(Retry::never());
    let (panics, hangs) = (service.start(&saga, 1).await, service.start(&saga, 2).await);
    service.run(&saga);
    let panics = service
        .until(panics, SagaStatus::Compensated)
        .await
        .error
        .expect("the saga has an error");
    assert!(
        panics.starts_with("bad: it panicked: ") && panics.contains("one is too many"),
        "{panics}"
    );
    let hangs = service
        .until(hangs, SagaStatus::Compensated)
        .await
        .error
        .expect("the saga has an error");
    assert_eq!(hangs, "bad: it did not finish within 500ms");
    let good = service.start(&saga, 3).await;
    service.until(good, SagaStatus::Completed).await;
    assert_eq!(
        service.effects().await,
        ["begun"],
        "failed steps leave no effects"
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sagas_that_ended_well_are_forgotten_after_their_time_and_failed_ones_are_kept() {
    let mut service = Service::open().await;
    let saga = Saga::<Number>::new("book")
        .keep(Duration::from_secs(3_600))
        .step("book")
        .local(async |number, _| Ok(number))
        .compensate_local(async |number, _| {
            if number == 3 {
                Err(HandlerError::dead_letter("kept"))
            } else {
                Ok(number)
            }
        })
        .retry(Retry::never())
        .step("refuse")
        .local(async |number, _| {
            if number > 1 {
                Err(HandlerError::dead_letter("refused"))
            } else {
                Ok(number)
            }
        });
    let statuses = [
        SagaStatus::Completed,
        SagaStatus::Completed,
        SagaStatus::Compensated,
        SagaStatus::Failed,
    ];
    let mut ids = Vec::new();
    service.run(&saga);
    for (number, status) in (0..).zip(statuses) {
        ids.push(service.start(&saga, number).await);
        service.until(ids[ids.len() - 1], status).await;
    }
    service.stop().await;
    // All but the first exceed the retention time.
    let age =
        "update tidings.saga set ended_at = ended_at - interval '2 hours' where id = any ($1)";
    sqlx::query(age)
        .bind(&ids[1..])
        .execute(&service.database.pool)
        .await
        .expect("the update succeeds");
    service.run(&saga);
    let left = async || {
        let left: Vec<Uuid> = sqlx::query_scalar("select id from tidings.saga order by started_at")
            .fetch_all(&service.database.pool)
            .await
            .expect("the query succeeds");
        left
    };
    until("two are forgotten", async || {
        (left().await.len() <= 2).then_some(())
    })
    .await;
    assert_eq!(left().await, [ids[0], ids[3]]);
    service.stop().await;
}
