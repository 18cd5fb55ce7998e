//! The table as a source: the rows that were there before the log is followed.
//!
//! They are those that one snapshot sees, taken where the slot starts: what the snapshot does not see comes from the log,
//! nothing comes from both. In insertion order, which is each aggregate's order (writers lock it before they publish).
//! How far it is published is stored page by page, so an interruption repeats one page at most.

use sqlx::{AssertSqlSafe, PgConnection, Row as _, ValueRef as _, postgres::PgRow};
use tokio_util::sync::CancellationToken;

use super::{CELLS, Row};
use crate::{
    postgres::replication::Cell,
    relay::{
        RelayOptions,
        error::Interruption,
        forward::Forwarder,
        ledger::{Backlog, Ledger, Witness},
    },
};

/// Rows a page: enough that the wait for acknowledgements at its end does not show, few enough to repeat.
const PAGE_ROWS: usize = 5_000;

/// Bytes of payload a page: it is held in memory whole. A single larger row goes alone.
const PAGE_BYTES: usize = 8 << 20;

/// Publishes the backlog; false if `shutdown` came first.
///
/// # Errors
/// Whatever interrupts it.
pub(in crate::relay) async fn publish(
    options: &RelayOptions,
    backlog: &Backlog,
    forwarder: &mut Forwarder,
    ledger: &mut Ledger,
    lost: &CancellationToken,
    shutdown: &CancellationToken,
) -> Result<bool, Interruption> {
    let sql = format!(
        "select {columns} from (
             select *, sum(coalesce(octet_length(payload::text), 0) + coalesce(octet_length(payload_bytes), 0)) over (order by seq) as bytes, row_number() over (order by seq) as n
             from (select * from \"{schema}\".outbox where seq > $1 and pg_visible_in_snapshot(xid, $2::pg_snapshot) order by seq limit {PAGE_ROWS}) page
         ) sized where n = 1 or bytes <= {PAGE_BYTES} order by seq",
        columns = Row::select_list(),
        schema = options.schema
    );
    let (mut after, mut total) = (backlog.after, 0u64);
    loop {
        let page = read_page(ledger.session(), &sql, after, &backlog.snapshot).await.map_err(Interruption::sql("reading the outbox"))?;
        let mut last = None;
        for row in &page {
            let row = Row::from_cells(&cells(row)?)?;
            while let Err(hold) = forwarder.forward(row.seq, &row.event)? {
                let cleared = tokio::select! {
                    cleared = forwarder.clear(hold) => cleared,
                    () = lost.cancelled() => return Err(Interruption::LeaseLost),
                    () = shutdown.cancelled() => return Ok(false),
                };
                forwarder.cleared(cleared)?;
            }
            last = Some(Witness { id: row.event.id, seq: row.seq });
        }
        tokio::select! {
            () = forwarder.sink().drained() => {}
            () = lost.cancelled() => return Err(Interruption::LeaseLost),
            () = shutdown.cancelled() => return Ok(false),
        }
        let acknowledged = forwarder.acknowledged()?;
        ledger.count_topics(&acknowledged.counts).await?;
        total += page.len() as u64;
        let Some(last) = last else { break };
        after = last.seq;
        ledger.backlog_published(Some(after), Some(last), page.len() as u64).await?;
    }
    ledger.backlog_published(None, None, 0).await?;
    if total > 0 {
        tracing::info!(events = total, "published what the outbox held; follows the log from here");
    }
    Ok(true)
}

async fn read_page(session: &mut PgConnection, sql: &str, after: i64, snapshot: &str) -> Result<Vec<PgRow>, sqlx::Error> {
    sqlx::query(AssertSqlSafe(sql)).bind(after).bind(snapshot).fetch_all(session).await
}

/// The row's values in binary form, borrowed.
fn cells(row: &PgRow) -> Result<[Cell<'_>; CELLS], Interruption> {
    let mut cells = [Cell::Null; CELLS];
    for (at, cell) in cells.iter_mut().enumerate() {
        let value = row.try_get_raw(at).map_err(Interruption::sql("reading the outbox"))?;
        if !value.is_null() {
            *cell = Cell::Binary(
                value.as_bytes().map_err(|error| Interruption::Refused(format!("a row of the outbox cannot be read: {error}")))?,
            );
        }
    }
    Ok(cells)
}
