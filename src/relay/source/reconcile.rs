//! Comparison of the streamed events with the table.
//!
//! A publication that is altered or created again while a relay runs loses rows without an error
//! (since PostgreSQL 18 also one that is dropped). It may lose only some rows of a transaction.
//! Therefore, before a snapshot becomes that of the position, the events that it sees are looked up
//! in the table.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::relay::{error::Interruption, leadership::relay_store::within, position::Pair};

/// Returns the events, by `seq`, that the pair's snapshot sees and the stream has not delivered.
///
/// # Errors
///
/// Returns an interruption if the connection is lost.
pub(super) async fn missing(
    session: &mut PgConnection,
    table: &str,
    pair: &Pair,
) -> Result<Vec<i64>, Interruption> {
    let Some(streamed) = &pair.streamed else {
        return Ok(Vec::new());
    };
    // Fewer rows than streamed events are not a loss: a client has deleted rows. The rows are
    // sorted here, because with `order by` the planner may scan the whole primary key.
    let listed = format!(
        "select seq from {table} where {} and not '{streamed}'::int8multirange @> seq",
        filter(pair)
    );
    let listed = sqlx::query_scalar(AssertSqlSafe(listed)).fetch_all(session);
    let mut missing: Vec<i64> = within("comparing the stream with the table", listed).await?;
    missing.sort_unstable();
    Ok(missing)
}

/// Returns the condition for rows that the second snapshot sees and the first does not, without
/// transactions whose streamed events are unknown.
fn filter(pair: &Pair) -> String {
    let in_progress: Vec<String> = pair
        .seen
        .in_progress()
        .iter()
        .map(|xid| format!("'{xid}'"))
        .collect();
    format!(
        "((xid >= '{first}'::xid8 and xid < '{last}'::xid8)
          or xid = any (array[{in_progress}]::xid8[]))
         and pg_visible_in_snapshot(xid, '{to}')
         and not '{unknown}'::int8multirange @> xid::text::bigint",
        first = pair.seen.xmax(),
        last = pair.to.xmax(),
        in_progress = in_progress.join(","),
        to = pair.to,
        unknown = pair.unknown,
    )
}
