//! One member process: the subscriber that books, and the one that runs the saga with its services.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tidings::subscriber::{
    Event, HandlerError, HasInbox, Meta, NoState, Statistics, Tombstone, Tx,
};
use tidings::{Bus, Subscriber, kafka};
use tokio_util::sync::CancellationToken;

use super::super::Failure;
use super::events::{
    ACCOUNT_TOPIC, Booked, Closed, Deposited, FIRST_TYPES, Frozen, LEDGER, Renamed, Withdrawn,
};
use super::tables::{effect, fail_as_ordered};
use super::{orders, release};

/// The `application_name` of a member's sessions.
pub(crate) const APPLICATION: &str = "chaos-member";

/// The environment variable with the release that a member is of.
pub(crate) const RELEASE: &str = "CHAOS_RELEASE";

/// Connections of each subscriber's pool.
const CONNECTIONS: u32 = 6;

/// The time between two records of a member's counters.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// Runs a member until SIGTERM. The database, brokers and release are those of the environment.
///
/// # Errors
/// Those with which a subscriber ends, which no fault may cause.
pub(crate) async fn run() -> Result<(), Failure> {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
    let (url, brokers, release) = (
        std::env::var("DATABASE_URL")?,
        std::env::var("KAFKA_BROKERS")?,
        std::env::var(RELEASE)?.parse()?,
    );
    let options: PgConnectOptions = url.parse()?;
    let options = options.application_name(APPLICATION);
    let pool = || {
        PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy_with(options.clone())
    };
    let bus = Bus::new(kafka::Settings {
        brokers,
        ..Default::default()
    });
    let (ledger, shop) = (
        ledger(&bus, pool(), release),
        orders::shop(&bus, pool(), release),
    );
    let counting = tokio::spawn(count(pool(), [ledger.statistics(), shop.statistics()]));
    let stop = CancellationToken::new();
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::spawn({
        let stop = stop.clone();
        async move {
            terminated.recv().await;
            stop.cancel();
        }
    });
    let (ledger, shop) = tokio::join!(ledger.run(stop.clone()), shop.run(stop));
    counting.abort();
    ledger?;
    shop?;
    Ok(())
}

fn ledger(bus: &Bus, pool: PgPool, release: u32) -> Subscriber<(), NoState, HasInbox> {
    let ledger = bus
        .subscriber::<()>(LEDGER)
        .topic::<Deposited>(ACCOUNT_TOPIC)
        .code_version(format!("r{release}"));
    let ledger = ledger
        .retry(release::retry(release))
        .escalation(release::escalation(release))
        .inbox(pool)
        .concurrency(8);
    let ledger = ledger.on(book::<Deposited>).on(book::<Withdrawn>).on(erase);
    let types = release::types(release) - FIRST_TYPES;
    let ledger = if types >= 1 {
        ledger.on(book::<Renamed>)
    } else {
        ledger
    };
    let ledger = if types >= 2 {
        ledger.on(book::<Frozen>)
    } else {
        ledger
    };
    if types >= 3 {
        ledger.on(book::<Closed>)
    } else {
        ledger
    }
}

async fn book<E: Booked + 'static>(
    Event(event): Event<E>,
    meta: Meta,
    mut tx: Tx,
) -> Result<(), HandlerError> {
    fail_as_ordered(&meta, event.booking().fails)?;
    effect(&mut tx, LEDGER, &meta).await?;
    // Long enough for faults to find a transaction open.
    tokio::time::sleep(Duration::from_millis(3)).await;
    Ok(())
}

async fn erase(erased: Tombstone<Deposited>, mut tx: Tx) -> Result<(), HandlerError> {
    effect(&mut tx, LEDGER, erased.meta()).await
}

/// Records the counters of this process. A database that is away is tried again.
async fn count(pool: PgPool, all: [Statistics; 2]) {
    let upsert = "insert into counted values ($1, $2, $3, $4, $5, $6, $7) on conflict (process, consumer) do update set
                  unknown = excluded.unknown, dead = excluded.dead, failed = excluded.failed,
                  duplicates = excluded.duplicates, conflicting = excluded.conflicting";
    let number = |number: u64| number.cast_signed();
    // Process ids are used again.
    let process = uuid::Uuid::now_v7();
    loop {
        for seen in &all {
            let row = sqlx::query(upsert)
                .bind(process)
                .bind(seen.name())
                .bind(number(seen.unknown_types()))
                .bind(number(seen.dead_lettered()))
                .bind(number(seen.failed_attempts()))
                .bind(number(seen.duplicates()))
                .bind(number(seen.conflicting()));
            let _ = row.execute(&pool).await;
        }
        tokio::time::sleep(COUNT_EVERY).await;
    }
}
