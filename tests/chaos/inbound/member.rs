//! Member process, with the subscriber for bookings and the subscriber for the saga and its
//! services.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tidings::subscriber::{
    Event, HandlerError, Meta, Statistics, Tombstone, Tx,
    typestate::{HasInbox, NoState},
};
use tidings::{Bus, Subscriber, kafka};
use tokio_util::sync::CancellationToken;

use super::super::Failure;
use super::events::{
    ACCOUNT_TOPIC, Booked, Closed, Deposited, FIRST_TYPES, Frozen, LEDGER, Renamed, Withdrawn,
};
use super::tables::{effect, fail_as_ordered};
use super::{orders, release};

/// The `application_name` of a member's database sessions.
pub(crate) const APPLICATION: &str = "chaos-member";

/// The environment variable that contains the release of a member.
pub(crate) const RELEASE: &str = "CHAOS_RELEASE";

/// The pool size of each subscriber.
const CONNECTIONS: u32 = 6;

/// The interval at which a member records its counters.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// Runs a member until SIGTERM. Reads the database, the brokers and the release from the
/// environment.
///
/// # Errors
///
/// Returns an error if the environment is incomplete or a subscriber fails. No injected fault may
/// cause this.
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
    // Keeps the transaction open long enough for faults to hit it.
    tokio::time::sleep(Duration::from_millis(3)).await;
    Ok(())
}

async fn erase(erased: Tombstone<Deposited>, mut tx: Tx) -> Result<(), HandlerError> {
    effect(&mut tx, LEDGER, erased.meta()).await
}

/// Records the counters of this process periodically. An unavailable database is retried in the
/// next interval, in a new session, because one that began while the database was read-only stays
/// read-only.
async fn count(pool: PgPool, all: [Statistics; 2]) {
    let upsert = "insert into counted values ($1, $2, $3, $4, $5, $6, $7) on conflict (process, \
                  consumer) do update set
                  unknown = excluded.unknown, dead = excluded.dead, failed = excluded.failed,
                  duplicates = excluded.duplicates, conflicting = excluded.conflicting";
    let number = |number: u64| number.cast_signed();
    // The operating system reuses process ids.
    let process = uuid::Uuid::now_v7();
    loop {
        tokio::time::sleep(COUNT_EVERY).await;
        let Ok(mut session) = pool.acquire().await else {
            continue;
        };
        let mut is_stored = true;
        for seen in &all {
            let row = sqlx::query(upsert)
                .bind(process)
                .bind(seen.name())
                .bind(number(seen.unknown_types()))
                .bind(number(seen.dead_lettered()))
                .bind(number(seen.failed_attempts()))
                .bind(number(seen.duplicates()))
                .bind(number(seen.conflicting()));
            is_stored &= row.execute(&mut *session).await.is_ok();
        }
        if !is_stored {
            let _ = session.close().await;
        }
    }
}
