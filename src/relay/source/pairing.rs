//! Compares what the stream brought with what the table holds.
//!
//! A publication that is altered or made anew under a running relay loses rows without an error (since Postgres 18 even one that
//! is dropped). So whenever a snapshot is about to become the position's, the events it sees are counted in the table.

use std::collections::HashSet;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::relay::{error::Interruption, ledger::within, position::Pair};

/// The events that the pair's snapshot sees and the stream has not brought, by `seq`.
///
/// # Errors
/// A lost connection.
pub(super) async fn missing(session: &mut PgConnection, table: &str, pair: &Pair) -> Result<Vec<i64>, Interruption> {
    let Some(streamed) = &pair.streamed else { return Ok(Vec::new()) };
    let doing = "comparing the stream with the table";
    let (count, sum) = streamed.iter().fold((0i64, 0i64), |(count, sum), (_, seq)| (count + 1, sum.wrapping_add(*seq)));
    let filter = filter(pair);
    let counted = format!("select count(*), coalesce(sum(seq), 0)::text from {table} where {filter}");
    let row = within(doing, sqlx::query(AssertSqlSafe(counted)).fetch_one(&mut *session)).await?;
    let in_table: (i64, String) = row.try_get(0).and_then(|count| Ok((count, row.try_get(1)?))).map_err(Interruption::sql(doing))?;
    if in_table == (count, sum.to_string()) {
        return Ok(Vec::new());
    }
    // Fewer rows than were streamed is somebody's delete, and no loss.
    let listed = format!("select seq from {table} where {filter} order by seq");
    let listed: Vec<i64> = within(doing, sqlx::query_scalar(AssertSqlSafe(listed)).fetch_all(session)).await?;
    let streamed: HashSet<i64> = streamed.iter().map(|(_, seq)| *seq).collect();
    Ok(listed.into_iter().filter(|seq| !streamed.contains(seq)).collect())
}

/// What the second snapshot sees and the first does not, without what an earlier session streamed.
fn filter(pair: &Pair) -> String {
    let in_progress: Vec<String> = pair.seen.in_progress().iter().map(|xid| format!("'{xid}'")).collect();
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
