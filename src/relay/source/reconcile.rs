//! Compares what the stream brought with what the table holds.
//!
//! A publication that is altered or made anew under a running relay loses rows without an error (since Postgres 18 even one that
//! is dropped), or a part of those of one transaction. So whenever a snapshot is about to become the position's, the events it sees are looked up in the table.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::relay::{error::Interruption, leadership::relay_store::within, position::Pair};

/// The events that the pair's snapshot sees and the stream has not brought, by `seq`.
///
/// # Errors
/// A lost connection.
pub(super) async fn missing(
    session: &mut PgConnection,
    table: &str,
    pair: &Pair,
) -> Result<Vec<i64>, Interruption> {
    let Some(streamed) = &pair.streamed else {
        return Ok(Vec::new());
    };
    // Fewer rows than were streamed is somebody's delete, and no loss. Sorted here: told to sort, the planner may walk the whole primary key.
    let listed = format!(
        "select seq from {table} where {} and not '{streamed}'::int8multirange @> seq",
        filter(pair)
    );
    let listed = sqlx::query_scalar(AssertSqlSafe(listed)).fetch_all(session);
    let mut missing: Vec<i64> = within("comparing the stream with the table", listed).await?;
    missing.sort_unstable();
    Ok(missing)
}

/// What the second snapshot sees and the first does not, without what is not known of.
fn filter(pair: &Pair) -> String {
    let in_progress: Vec<String> = pair
        .seen
        .in_progress()
        .iter()
        .map(|xid| format!("'{xid}'"))
        .collect();
    format!(
        "((xid >= '{first}'::xid8 and xid < '{last}'::xid8) or xid = any (array[{in_progress}]::xid8[]))
         and pg_visible_in_snapshot(xid, '{to}') and not '{unknown}'::int8multirange @> xid::text::bigint",
        first = pair.seen.xmax(),
        last = pair.to.xmax(),
        in_progress = in_progress.join(","),
        to = pair.to,
        unknown = pair.unknown,
    )
}
