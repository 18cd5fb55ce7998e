//! The measured subscribers.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPoolOptions;
use tidings::subscriber::{Batch, Event, HandlerError, State, Statistics, Subscriber, Tx};
use tidings::{Bus, DomainEvent, kafka};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::Outcome;
use crate::options::{Scenario, Transactions};
use crate::report::Measured;
use crate::timer::Timer;

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
#[allow(dead_code, reason = "fields are decoded but not read")]
pub(crate) struct OrderPlaced {
    order_id: String,
    seq: u64,
    customer: String,
    total_cents: i64,
    currency: String,
    lines: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    sku: String,
    qty: u32,
    price_cents: i64,
}

async fn nothing(Event(order): Event<OrderPlaced>) -> Result<(), HandlerError> {
    std::hint::black_box(order);
    Ok(())
}

async fn wait(
    Event(order): Event<OrderPlaced>,
    State((timer, time)): State<(Timer, Duration)>,
) -> Result<(), HandlerError> {
    std::hint::black_box(order);
    timer.sleep(time).await;
    Ok(())
}

impl OrderPlaced {
    /// Returns the id of the account row of this aggregate. No other aggregate uses the row, so two
    /// handlers never wait for each other.
    fn account(&self) -> i32 {
        self.order_id
            .trim_start_matches("k-")
            .parse()
            .expect("a number")
    }
}

async fn update(Event(order): Event<OrderPlaced>, mut tx: Tx) -> Result<(), HandlerError> {
    sqlx::query("update account set cents = cents + $2 where id = $1")
        .bind(order.account())
        .bind(order.total_cents)
        .execute(&mut *tx)
        .await?;
    Ok(())
}

async fn update_all(orders: Batch<OrderPlaced>, mut tx: Tx) -> Result<(), HandlerError> {
    let (ids, cents): (Vec<i32>, Vec<i64>) = orders
        .iter()
        .map(|order| (order.account(), order.total_cents))
        .unzip();
    let sql = "update account set cents = account.cents + n.cents
        from (
            select id, sum(cents)::bigint as cents
            from unnest($1::int[], $2::bigint[]) as u (id, cents) group by id order by id
        ) as n
        where account.id = n.id";
    sqlx::query(sql)
        .bind(ids)
        .bind(cents)
        .execute(&mut *tx)
        .await?;
    Ok(())
}

/// Runs a scenario in a child process, because filling a topic leaves memory allocated in this one.
pub(crate) fn run_apart(
    scenario: Scenario,
    brokers: &str,
    database: &str,
    topic: &str,
    records: u64,
) -> Outcome<Measured> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.args([
        "--measure",
        database,
        "--scenario",
        &scenario.name(),
        "--records",
        &records.to_string(),
    ]);
    let done = command
        .args(["--brokers", brokers, "--topic", topic])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    let said = String::from_utf8_lossy(&done.stdout);
    let figures: Vec<f64> = said
        .split_whitespace()
        .filter_map(|figure| figure.parse().ok())
        .collect();
    let [seconds, cpu_seconds, peak_megabytes] = figures[..] else {
        return Err(format!("{} printed {said:?}", scenario.name()).into());
    };
    Ok(Measured {
        records,
        seconds,
        cpu_seconds,
        peak_megabytes,
    })
}

/// Handles the whole topic once in a new consumer group and returns the figures.
pub(crate) async fn run(
    scenario: Scenario,
    brokers: &str,
    database: &str,
    topic: &str,
    records: u64,
) -> Outcome<Measured> {
    let bus = Bus::new(kafka::Settings {
        brokers: brokers.into(),
        ..kafka::Settings::default()
    });
    let shutdown = CancellationToken::new();
    let before = cpu_seconds();
    let (statistics, task) = match scenario {
        Scenario::NoWork => start(subscriber(&bus, topic).on(nothing), &shutdown),
        Scenario::OneMilli | Scenario::FewKeys | Scenario::TenMilli => {
            let (micros, concurrency) = scenario.waits().ok_or("the scenario has no wait")?;
            let state = (Timer::start(), Duration::from_micros(micros));
            start(
                subscriber(&bus, topic)
                    .on(wait)
                    .state(state)
                    .concurrency(concurrency),
                &shutdown,
            )
        }
        Scenario::EffectOnce | Scenario::Batch32 | Scenario::Batch100 | Scenario::SetBased => {
            let Transactions {
                connections,
                events,
                at_once,
            } = scenario.transactions().ok_or("the scenario has no inbox")?;
            let pool = pool(database, u32::try_from(connections)?).await?;
            let subscriber = subscriber(&bus, topic)
                .concurrency(2 * connections)
                .batch(events);
            match at_once {
                true => start(subscriber.on(update_all).inbox(pool), &shutdown),
                false => start(subscriber.on(update).inbox(pool), &shutdown),
            }
        }
    };
    let mut began = None;
    while statistics.handled() < records {
        if began.is_none() && statistics.handled() > 0 {
            began = Some(Instant::now());
        }
        if task.is_finished() {
            return Err("the subscriber ended early".into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let seconds = began.map_or(f64::NAN, |began| began.elapsed().as_secs_f64());
    let cpu = cpu_seconds() - before;
    let measured = Measured {
        records,
        seconds,
        cpu_seconds: cpu,
        peak_megabytes: peak_megabytes(),
    };
    shutdown.cancel();
    task.await??;
    Ok(measured)
}

fn subscriber<S: Send + Sync + 'static>(bus: &Bus, topic: &str) -> Subscriber<S> {
    bus.subscriber(format!("bench-{}", Uuid::now_v7().simple()))
        .topic::<OrderPlaced>(topic)
        .assume::<OrderPlaced>()
}

type Running = (
    Statistics,
    JoinHandle<Result<(), tidings::subscriber::RunError>>,
);

fn start<S, G, I>(subscriber: Subscriber<S, G, I>, shutdown: &CancellationToken) -> Running
where
    S: Send + Sync + 'static,
    G: tidings::subscriber::typestate::StateReady<S> + Send + 'static,
    I: tidings::subscriber::typestate::InboxReady + Send + 'static,
{
    (
        subscriber.statistics(),
        tokio::spawn(subscriber.run(shutdown.clone())),
    )
}

async fn pool(server: &str, connections: u32) -> Outcome<sqlx::PgPool> {
    // The pool options that `docs/subscribing.md` recommends.
    Ok(PgPoolOptions::new()
        .max_connections(connections)
        .test_before_acquire(false)
        .connect(&database(server).await?)
        .await?)
}

/// Creates a new database with the table that the handlers update, and returns its URL.
pub(crate) async fn database(server: &str) -> Outcome<String> {
    let name = format!("bench_{}", Uuid::now_v7().simple());
    let admin = sqlx::PgPool::connect(server).await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("create database {name}")))
        .execute(&admin)
        .await?;
    let mut url: url::Url = server.parse()?;
    url.set_path(&name);
    let pool = sqlx::PgPool::connect(url.as_str()).await?;
    tidings::migrate(&pool).await?;
    let table =
        "create table account (id int primary key, cents bigint not null) with (fillfactor = 50);
        insert into account select g, 0 from generate_series(0, 19999) g; vacuum analyze account";
    for sql in table.split(';') {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
            .execute(&pool)
            .await?;
    }
    pool.close().await;
    Ok(url.into())
}

/// User and system time of this process in seconds. Linux reports hundredths in `/proc`.
pub(crate) fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(11)
        .take(2);
    fields
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

fn peak_megabytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    peak.unwrap_or(f64::NAN) / 1024.0
}
