//! Confirmation of the slot at an orderly shutdown: up to the end of the log, if no event is left
//! in it.
//!
//! The relay stores its last position after the last event, so its own commit follows the confirmed
//! log. pg_upgrade (17 and later) refuses a slot if any transaction of the database follows its
//! confirmed position. The log in between is inspected before it is confirmed: an event that the
//! relay has not read stays in the slot.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::{sleep, timeout};

use crate::{
    postgres::Lsn,
    relay::{
        RelayOptions, SourceKind,
        error::Interruption,
        leadership::relay_store::{connect, within},
        startup::names::LogNames,
    },
};

/// Interval between checks for an operation that ends within milliseconds.
const LOOK: Duration = Duration::from_millis(20);

/// Maximum delay of a relay's shutdown. The log after the last confirmation is decoded, which is
/// the log of a few seconds.
const LIMIT: Duration = Duration::from_secs(5);

/// Confirms the rest of the slot after `safe`, within `time`. A failure has no consequence: the
/// next start confirms it.
pub(crate) async fn confirm_rest(
    options: &RelayOptions,
    names: &LogNames,
    safe: Lsn,
    time: Duration,
) {
    let time = time.min(LIMIT);
    match timeout(time, confirm(options, names, safe, time)).await {
        Ok(Ok(true)) => tracing::info!(
            slot = names.slot,
            "the slot is confirmed up to the end of the log"
        ),
        Ok(Ok(false)) => tracing::debug!(
            slot = names.slot,
            "the slot is confirmed up to the last published event"
        ),
        Ok(Err(error)) => tracing::debug!(
            "{}; the next start confirms the rest of the slot",
            error.full()
        ),
        Err(_) => tracing::debug!(
            "the server does not answer in time; the next start confirms the rest of the slot"
        ),
    }
}

/// Returns `true` if everything is confirmed.
async fn confirm(
    options: &RelayOptions,
    names: &LogNames,
    safe: Lsn,
    time: Duration,
) -> Result<bool, Interruption> {
    let mut session = connect(options, "relay slot").await?;
    // A client that disconnects does not end its statement.
    let limit = AssertSqlSafe(format!(
        "set statement_timeout = {}",
        time.as_millis().max(1)
    ));
    within(
        "preparing the session",
        sqlx::raw_sql(limit).execute(&mut session),
    )
    .await?;
    let Some(confirmed) = free_slot(&mut session, &names.slot).await? else {
        return Ok(false);
    };
    own_work_ended(options, &mut session).await?;
    let end = flushed_end(&mut session).await?;
    if safe > confirmed {
        advance(&mut session, &names.slot, safe).await?;
    }
    let complete = may_pass_position(options) && !holds_events(&mut session, names, end).await?;
    if complete {
        advance(&mut session, &names.slot, end).await?;
    }
    let _ = session.close().await;
    Ok(complete)
}

/// Returns `true` if the slot may be ahead of the position when the relay starts again. The relay
/// then reads the table first. A table that is not Tidings' own may have lost its rows, and the
/// table does not contain the order of commits, which `source = "wal"` guarantees.
fn may_pass_position(options: &RelayOptions) -> bool {
    options.debezium.is_none() && options.source != SourceKind::Wal
}

/// Returns the slot's confirmed position once its walsender has ended. Returns `None` if there is
/// no readable slot.
async fn free_slot(session: &mut PgConnection, slot: &str) -> Result<Option<Lsn>, Interruption> {
    let sql = "select active, confirmed_flush_lsn::text from pg_replication_slots
               where slot_name = $1 and database = current_database() and plugin = 'pgoutput'
               and wal_status <> 'lost'";
    loop {
        let row = sqlx::query_as(sql).bind(slot).fetch_optional(&mut *session);
        let row: Option<(bool, Option<String>)> = within("examining the slot", row).await?;
        match row {
            None => return Ok(None),
            Some((false, confirmed)) => return Ok(confirmed.and_then(|lsn| lsn.parse().ok())),
            Some((true, _)) => sleep(LOOK).await,
        }
    }
}

/// Waits until the server has ended the relay's last statements, because a statement outlives its
/// client by a moment.
async fn own_work_ended(
    options: &RelayOptions,
    session: &mut PgConnection,
) -> Result<(), Interruption> {
    let names = ["relay retention", "relay scheduled", "relay table"]
        .map(|role| options.database.application_name(role));
    let sql = "select exists (select from pg_stat_activity
                   where datname = current_database() and usename = current_user
                   and backend_xid is not null and pid <> pg_backend_pid()
                   and application_name = any ($1))";
    while within(
        "waiting for the relay's own sessions",
        sqlx::query_scalar(sql)
            .bind(names.as_slice())
            .fetch_one(&mut *session),
    )
    .await?
    {
        sleep(LOOK).await;
    }
    Ok(())
}

/// Returns the end of the log once it is flushed. The relay's own commits do not wait for the
/// flush, and a slot cannot be advanced beyond it.
async fn flushed_end(session: &mut PgConnection) -> Result<Lsn, Interruption> {
    let doing = "reading the end of the log";
    let end =
        sqlx::query_scalar("select pg_current_wal_insert_lsn()::text").fetch_one(&mut *session);
    let end: String = within(doing, end).await?;
    let flushed = "select pg_current_wal_flush_lsn() >= $1::pg_lsn";
    while !within(
        doing,
        sqlx::query_scalar::<_, bool>(flushed)
            .bind(&end)
            .fetch_one(&mut *session),
    )
    .await?
    {
        sleep(LOOK).await;
    }
    Ok(end.parse().unwrap_or_default())
}

/// Returns `true` if the slot contains an event or a truncation of the outbox (message types `I`
/// and `T` of pgoutput).
async fn holds_events(
    session: &mut PgConnection,
    names: &LogNames,
    end: Lsn,
) -> Result<bool, Interruption> {
    let sql = "select exists (
                   select from pg_logical_slot_peek_binary_changes(
                       $1, $2::text::pg_lsn, null,
                       'proto_version', '1', 'publication_names', $3)
                   where get_byte(data, 0) in (ascii('I'), ascii('T')))";
    let publication = format!("\"{}\"", names.publication.replace('"', "\"\""));
    let peek = sqlx::query_scalar(sql)
        .bind(&names.slot)
        .bind(end.to_string())
        .bind(publication)
        .fetch_one(session);
    within("reading the content of the slot", peek).await
}

async fn advance(session: &mut PgConnection, slot: &str, to: Lsn) -> Result<(), Interruption> {
    let sql = "select pg_replication_slot_advance($1, $2::text::pg_lsn)::text";
    let advanced = sqlx::query(sql)
        .bind(slot)
        .bind(to.to_string())
        .execute(session);
    within("confirming the slot", advanced).await.map(|_| ())
}
