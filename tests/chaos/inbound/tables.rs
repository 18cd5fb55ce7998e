//! Tables of a history: the commits of the writers and the effects of the members.

use sqlx::PgConnection;
use tidings::subscriber::{HandlerError, Meta, Tx};

use super::super::Failure;
use super::super::transaction::execute;

/// The header that marks a hostile record.
pub(crate) const MARK: &str = "chaos-mark";

/// The number of accounts. More than a quarter of all bookings go to the first one.
pub(crate) const ACCOUNTS: u64 = 12;

/// The table whose row a writer locks in each transaction. A lock of the whole table pauses all
/// writers.
pub(crate) const GATE: &str = "gate";

const TABLES: &str = "
    create table gate (id int primary key);
    insert into gate values (1);
    create table account (id text primary key, version bigint not null default 0);
    create table history (account text not null, version bigint not null, \
        event_id text primary key, fails int not null);
    create table orders (id bigint generated always as identity primary key, \
        quantity bigint not null, cents bigint not null,
                         refused_by text not null, status text not null default 'placed');

    create table effect (seq bigint generated always as identity, consumer text not null, \
        event_id text not null, type text not null,
                         aggregate text not null, topic text not null, partition int not null, \
                             record_offset bigint not null,
                         attempt int not null, pid int not null, mark text, \
                             at timestamptz not null default clock_timestamp());
    create index on effect (event_id);
    create table stock_move (order_id bigint not null, quantity bigint not null);
    create table money_move (order_id bigint not null, cents bigint not null);
    create table parcel (order_id bigint not null);
    create table audited (order_id bigint not null);
    create table reservation (order_id bigint primary key, state text not null);
    create table payment (order_id bigint primary key, state text not null);
    create table anomaly (what text not null);
    create table counted (process uuid, consumer text, unknown bigint, dead bigint, failed bigint, \
        duplicates bigint, conflicting bigint,
                          primary key (process, consumer));
";

/// Creates the tables and accounts.
///
/// # Errors
///
/// Returns an error if Postgres refuses.
pub(crate) async fn create(session: &mut PgConnection) -> Result<(), Failure> {
    execute(session, TABLES).await?;
    execute(
        session,
        &format!(
            "insert into account (id) select 'a-' || n from generate_series(0, {ACCOUNTS} - 1) n"
        ),
    )
    .await
}

/// Records the effect of a handler.
///
/// # Errors
///
/// Returns the error that the server reports.
pub(crate) async fn effect(tx: &mut Tx, consumer: &str, meta: &Meta) -> Result<(), HandlerError> {
    let insert = "insert into effect (consumer, event_id, type, aggregate, topic, partition, \
                  record_offset, attempt, pid, mark)
                  values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    sqlx::query(insert)
        .bind(consumer)
        .bind(&*meta.event_id())
        .bind(meta.event_type())
        .bind(&*meta.aggregate_id())
        .bind(meta.topic())
        .bind(meta.partition())
        .bind(meta.offset())
        .bind(i32::try_from(meta.attempt()).unwrap_or(i32::MAX))
        .bind(std::process::id().cast_signed())
        .bind(meta.header(MARK))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Records an observation that must not happen.
///
/// # Errors
///
/// Returns the error that the server reports.
pub(crate) async fn anomaly(tx: &mut Tx, what: String) -> Result<(), HandlerError> {
    sqlx::query("insert into anomaly values ($1)")
        .bind(what)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Fails the first `fails` attempts of an event.
///
/// # Errors
///
/// Returns an error if this attempt is one of the first `fails`.
pub(crate) fn fail_as_ordered(meta: &Meta, fails: u32) -> Result<(), HandlerError> {
    if meta.attempt() <= fails {
        Err(HandlerError::retry("the event orders its handler to fail"))
    } else {
        Ok(())
    }
}
