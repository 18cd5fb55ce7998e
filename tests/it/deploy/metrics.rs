//! Alerts and panels name only metrics that a relay, `verify --follow`, a subscriber or a saga
//! exports.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use tidings::saga::{Saga, SagaMetrics};
use tidings::subscriber::{Event, HandlerError, Retry, SubscriberMetrics, Tx};

use super::alerts::{alerts, panels};
use super::selectors::{Exported, selectors};
use crate::cli::{Running, get};
use crate::subscriber::observing::scraped;
use crate::support::eventually::until_blocking;
use crate::support::place::{Changed, Place, start};
use crate::support::running;
use crate::support::services::migrated_database;

fn command(place: &running::Place, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command
        .args(arguments)
        .args(["--name", &place.name, "--topic", &place.topic])
        .args(["--listen", "127.0.0.1:0", "--log-format", "json"])
        .env_clear()
        .env("DATABASE_URL", &place.url)
        .env("KAFKA_BROKERS", &place.brokers)
        .stdin(Stdio::null());
    command
}

/// Returns the metrics of `tidings verify --follow`.
fn of_verify(place: &running::Place) -> String {
    let mut command = command(place, &["verify", "--follow"]);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("metrics on http://") {
        line.clear();
        assert!(stderr.read_line(&mut line).expect("text") > 0, "it ended");
    }
    let address = line.split("http://").nth(1).expect("an address").trim();
    let text = get(address.trim_end_matches("/metrics"), "/metrics");
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    text.expect("the metrics")
}

/// Returns the metrics of a relay that has published, sent a dead letter and lost a session.
async fn of_a_relay() -> String {
    let database = migrated_database().await;
    let place = running::Place::new(&database);
    let policy = [
        "relay",
        "--create-topics",
        "--on-undeliverable",
        "dead-letter",
    ];
    let relay = Running::start(command(&place, &policy));
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) values \
        ('order', '1', 'T', '{}'), ('order', '2', 'T', to_jsonb(repeat('x', 2000000)))";
    sqlx::raw_sql(insert)
        .execute(&database.pool)
        .await
        .expect("the insert succeeds");
    let shows = |part: &str| {
        until_blocking(part, || relay.get("/metrics").contains(part).then_some(()));
    };
    shows("tidings_relay_published_total{");
    shows("outcome=\"dead-letter\"");
    until_blocking("the relay streams", || {
        relay
            .get("/health/ready")
            .contains("streaming")
            .then_some(())
    });
    let end = format!(
        "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '{}'",
        place.slot()
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(end))
        .execute(&database.pool)
        .await
        .expect("the session can be ended");
    shows("tidings_relay_reconnects_total{");
    let both = relay.get("/metrics") + &of_verify(&place);
    assert_eq!(relay.stop("TERM").0, 0);
    both
}

/// Returns the metrics of a subscriber with a dead letter, and those of a saga.
async fn of_a_service() -> String {
    async fn dies(_: Event<Changed>, _: Tx) -> Result<(), HandlerError> {
        Err(HandlerError::dead_letter("broken"))
    }
    let (database, place) = (migrated_database().await, Place::new(1).await);
    place.publish(1, 1..=1).await;
    let subscriber = place.subscriber::<()>().on(dies);
    let running = start!(
        subscriber
            .inbox(database.pool.clone())
            .retry(Retry::never())
    );
    running
        .until("it is dead", |seen| seen.dead_lettered() == 1)
        .await;
    let saga = Saga::<i32>::new("checkout")
        .step("pay")
        .local(async |order, _| Ok(order));
    let text = scraped(|registry| {
        let subscribers = SubscriberMetrics::default().subscriber(&running.statistics);
        subscribers.register(registry);
        SagaMetrics::default()
            .saga(&saga.statistics())
            .register(registry);
    });
    running.stop().await;
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_and_panels_use_only_metrics_that_are_exported() {
    let mut exported = Exported::default();
    exported.add(&of_a_relay().await);
    exported.add(&of_a_service().await);
    let alerts = alerts().into_iter().map(|(name, expr, _)| (name, expr));
    let mut used = 0;
    let mut faults = Vec::new();
    for (place, expression) in alerts.chain(panels()) {
        let found = selectors(&expression);
        assert!(!found.is_empty(), "{place} uses no metric: {expression}");
        used += found.len();
        let of_place = found.iter().filter_map(|one| exported.fault(one));
        faults.extend(of_place.map(|fault| format!("{place}: {fault}")));
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert!(used > 60, "{used}");
}
