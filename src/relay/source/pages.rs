//! Reads a window of the outbox in pages, ahead of the publisher.
//!
//! The form of the query keeps a page below a millisecond, even with millions of rows and a
//! transaction that is open for hours. Rows of transactions that were in progress in the first
//! snapshot are looked up by their transaction. All other rows lie between two bounds that are
//! queried once per window.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::TryStreamExt as _;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use tokio::sync::mpsc;

use super::long_query::{backend, watched};
use crate::{
    postgres::{CopyError, replication::Cell},
    relay::{
        RelayOptions,
        error::Interruption,
        leadership::relay_store::{connect, within},
        position::{Snapshot, Window},
        row::table_layout::{CopiedRow, TableLayout},
    },
};

/// Maximum number of rows per page. The time for planning and querying is hidden by the publishing
/// of that many events. Larger pages were not faster and cost memory.
const ROWS_MAX: usize = 1_000;

/// Number of rows of the first page, whose row sizes are unknown.
const ROWS_FIRST: usize = 250;

/// Approximate size of a page in bytes. At most three pages are in memory. A larger row is a page
/// of its own.
const BYTES_MAX: usize = 2 << 20;

/// Makes the planner read a page in the order of the primary key. Without statistics (a table just
/// loaded) it would sort all remaining rows for each page, which makes a drain quadratic.
const PLAN: &str = "set enable_sort = off; set enable_seqscan = off; set enable_bitmapscan = off; \
                    set max_parallel_workers_per_gather = 0; set jit = off";

/// Makes a database without an encoding send text as it is stored. Otherwise a single text that is
/// not UTF-8 would fail every read of the table or the log, and its event could not be identified.
pub(crate) const UNCHECKED_TEXT: &str = "select set_config('client_encoding', 'SQL_ASCII', false) \
                                         where current_setting('server_encoding') = 'SQL_ASCII'";

/// A connection that reads the outbox.
pub(crate) struct Reader {
    options: RelayOptions,
    table_layout: TableLayout,
    session: Option<PgConnection>,
    rows: usize,
    spares: Spares,
}

/// Rows of one page, in the format of COPY.
pub(crate) struct Page {
    bytes: Vec<u8>,
    spares: Spares,
}

/// Buffers of dropped pages. They are reused for the next pages, so that the allocator does not
/// accumulate memory.
#[derive(Clone, Default)]
struct Spares(Arc<Mutex<Vec<Vec<u8>>>>);

/// Bounds of the rows of a window whose transactions were not in progress in its first snapshot.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    low: i64,
    high: i64,
}

impl Reader {
    pub(crate) fn new(options: &RelayOptions, table_layout: &TableLayout) -> Self {
        Self {
            options: options.clone(),
            table_layout: table_layout.clone(),
            session: None,
            rows: ROWS_FIRST,
            spares: Spares::default(),
        }
    }

    /// Sends the pages of a window in order. Returns the reader for the next window.
    ///
    /// # Errors
    ///
    /// Returns an interruption if the connection is lost.
    pub(super) async fn read(
        mut self,
        seen: Snapshot,
        window: Window,
        pages: mpsc::Sender<Page>,
    ) -> Result<Self, Interruption> {
        let Some(bounds) = self.bounds(&seen, &window.to).await? else {
            return Ok(self);
        };
        let mut after = window.after;
        loop {
            let limit = self.rows;
            let query = page_query(
                &self.options.quoted_table(),
                &self.table_layout.select_list(),
                &seen,
                &window.to,
                after,
                bounds,
                limit,
            );
            let (page, whole) = self.copy(&query).await?;
            let (rows, last) = page.measure(&self.table_layout)?;
            self.rows = rows_for(rows, page.bytes.len());
            let Some(last) = last else { return Ok(self) };
            after = last;
            if pages.send(page).await.is_err() || (whole && rows < limit) {
                return Ok(self);
            }
        }
    }

    /// Returns the events with these numbers (ascending), in order, and the count of numbers that
    /// were looked up. Large rows end a page early.
    ///
    /// # Errors
    ///
    /// Returns an interruption if the connection is lost.
    pub(crate) async fn read_these(&mut self, seqs: &[i64]) -> Result<(Page, usize), Interruption> {
        let list: Vec<String> = seqs.iter().map(i64::to_string).collect();
        let (columns, table) = (self.table_layout.select_list(), self.options.quoted_table());
        let query = format!(
            "select {columns} from {table} where seq = any (array[{}]::bigint[]) order by seq",
            list.join(",")
        );
        let (page, whole) = self.copy(&query).await?;
        let done = match page.measure(&self.table_layout)?.1 {
            Some(last) if !whole => seqs.partition_point(|seq| *seq <= last),
            _ => seqs.len(),
        };
        Ok((page, done))
    }

    /// Sends every row that an exported snapshot sees.
    ///
    /// # Errors
    ///
    /// Returns an interruption if the connection is lost.
    pub(crate) async fn read_existing(
        mut self,
        snapshot: String,
        pages: mpsc::Sender<Page>,
    ) -> Result<(), Interruption> {
        let doing = "reading the existing rows";
        let (columns, table, order) = (
            self.table_layout.select_list(),
            self.options.quoted_table(),
            self.table_layout.natural_order(),
        );
        let (spares, options) = (self.spares.clone(), self.options.clone());
        let session = self.session().await?;
        let begin = format!(
            "begin isolation level repeatable read read only; set transaction snapshot '{snapshot}'"
        );
        within(
            doing,
            sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *session),
        )
        .await?;
        // The rows are ordered by the table's columns, whatever the select list contains.
        let query = format!(
            "copy (select {columns} from {table} as outbox order by {order}) to stdout \
             (format binary)"
        );
        let backend = backend(session).await?;
        // The first row arrives after all rows are sorted.
        let sorting = async {
            let mut rows = session
                .copy_out_raw(&query)
                .await
                .map_err(Interruption::sql(doing))?;
            let first = rows.try_next().await.map_err(Interruption::sql(doing))?;
            Ok((rows, first))
        };
        let (mut rows, mut next_row) = watched(&options, doing, backend, sorting, None).await?;
        let mut page = spares.page();
        while let Some(row) = next_row {
            page.bytes.extend_from_slice(&row);
            if page.bytes.len() >= BYTES_MAX {
                let mut next = spares.page();
                next.bytes
                    .extend_from_slice(&crate::postgres::copy_header());
                if pages
                    .send(std::mem::replace(&mut page, next))
                    .await
                    .is_err()
                {
                    return Ok(());
                }
            }
            next_row = within(doing, rows.try_next()).await?;
        }
        let _ = pages.send(page).await;
        Ok(())
    }

    async fn session(&mut self) -> Result<&mut PgConnection, Interruption> {
        let session = self.open().await?;
        Ok(self.session.insert(session))
    }

    async fn open(&mut self) -> Result<PgConnection, Interruption> {
        if let Some(session) = self.session.take() {
            return Ok(session);
        }
        let mut session = connect(&self.options, "relay table").await?;
        within(
            "preparing the session",
            sqlx::raw_sql(PLAN).execute(&mut session),
        )
        .await?;
        within(
            "preparing the session",
            sqlx::raw_sql(UNCHECKED_TEXT).execute(&mut session),
        )
        .await?;
        Ok(session)
    }

    /// Returns the bounds of a window. Returns `None` if the window contains no row.
    async fn bounds(
        &mut self,
        seen: &Snapshot,
        to: &Snapshot,
    ) -> Result<Option<Bounds>, Interruption> {
        let sql = format!(
            // Without `offset 0` the planner may look for the smallest seq along the primary key,
            // past millions of older rows.
            "select min(seq), max(seq) from (
                 select seq from {} where xid >= '{}'::xid8 and xid < '{}'::xid8
                 and pg_visible_in_snapshot(xid, '{to}') offset 0) new_rows",
            self.options.quoted_table(),
            seen.xmax(),
            to.xmax()
        );
        let doing = "looking for new events";
        let options = self.options.clone();
        let session = self.session().await?;
        let backend = backend(session).await?;
        // Not limited in time: the first window of a large outbox is counted once, which takes
        // about half a second for five million rows.
        let counting = async {
            sqlx::query(AssertSqlSafe(sql))
                .fetch_one(session)
                .await
                .map_err(Interruption::sql(doing))
        };
        let row = watched(&options, doing, backend, counting, None).await?;
        let bound = |at: usize| {
            row.try_get::<Option<i64>, _>(at)
                .map_err(Interruption::sql(doing))
        };
        Ok(match bound(0)?.zip(bound(1)?) {
            Some((low, high)) => Some(Bounds { low, high }),
            None if seen.in_progress().is_empty() => None,
            None => Some(Bounds { low: 1, high: 0 }),
        })
    }

    /// Returns one page, and whether it contains all requested rows. If rows are larger than
    /// expected, the rest is left to the next page.
    async fn copy(&mut self, query: &str) -> Result<(Page, bool), Interruption> {
        let doing = "reading the outbox";
        let statement = format!("copy ({query}) to stdout (format binary)");
        let mut session = self.open().await?;
        let mut page = self.spares.page();
        let mut rows = within(doing, session.copy_out_raw(&statement)).await?;
        while let Some(row) = within(doing, rows.try_next()).await? {
            page.bytes.extend_from_slice(&row);
            if page.bytes.len() >= BYTES_MAX {
                // The rest of the response would have to be read. The connection is dropped
                // instead.
                return Ok((page, false));
            }
        }
        drop(rows);
        self.session = Some(session);
        Ok((page, true))
    }
}

impl Spares {
    /// Returns an empty page.
    fn page(&self) -> Page {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Page {
            bytes: spare.unwrap_or_default(),
            spares: self.clone(),
        }
    }
}

impl Page {
    /// Returns the rows, to decode them one by one.
    ///
    /// # Errors
    ///
    /// Returns an interruption if the server sent something else.
    pub(crate) fn rows<'a>(
        &'a self,
        table_layout: &TableLayout,
    ) -> Result<impl Iterator<Item = Result<CopiedRow<'a>, CopyError>> + Send + 'a, Interruption>
    {
        table_layout.rows(&self.bytes).map_err(damaged)
    }

    /// Returns the number of rows and the `seq` of the last one.
    fn measure(&self, table_layout: &TableLayout) -> Result<(usize, Option<i64>), Interruption> {
        let (mut count, mut last) = (0, None);
        for row in self.rows(table_layout)? {
            count += 1;
            last = match row.map_err(damaged)?.seq() {
                Cell::Binary(bytes) => bytes.try_into().ok().map(i64::from_be_bytes),
                _ => None,
            };
        }
        Ok((count, last))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.capacity() <= 2 * BYTES_MAX {
            bytes.clear();
            self.spares
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(bytes);
        }
    }
}

/// Converts the error of a damaged page.
pub(crate) fn damaged(error: CopyError) -> Interruption {
    Interruption::sql("reading the outbox")(sqlx::Error::Protocol(error.to_string()))
}

/// Returns the number of rows to request next, after a page of `rows` rows and `bytes` bytes.
fn rows_for(rows: usize, bytes: usize) -> usize {
    let fitting = BYTES_MAX / 2 / (bytes / rows.max(1)).max(1);
    fitting.clamp(1, ROWS_MAX)
}

fn page_query(
    table: &str,
    columns: &str,
    seen: &Snapshot,
    to: &Snapshot,
    after: i64,
    bounds: Bounds,
    limit: usize,
) -> String {
    let from = after.max(bounds.low - 1);
    let settled = format!(
        "(select {columns} from {table}
          where seq > {from} and seq <= {high} and xid >= '{first}'::xid8 and xid < '{last}'::xid8
            and pg_visible_in_snapshot(xid, '{to}') order by seq limit {limit})",
        high = bounds.high,
        first = seen.xmax(),
        last = to.xmax(),
    );
    if seen.in_progress().is_empty() {
        return settled;
    }
    format!(
        "select * from (
            select o.* from pg_snapshot_xip('{seen}') as then_in_progress (xid)
                cross join lateral
                (select {columns} from {table} as outbox
                 where outbox.xid = then_in_progress.xid and seq > {after}
                 order by seq limit {limit}) o
            where pg_visible_in_snapshot(then_in_progress.xid, '{to}')
            union all {settled}
        ) page order by seq limit {limit}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_asks_for_as_many_rows_as_fit() {
        assert_eq!(rows_for(250, 250 * 400), ROWS_MAX);
        assert_eq!(rows_for(10, 10 * BYTES_MAX / 4), 2);
        assert_eq!(rows_for(1, 16 << 20), 1);
        assert_eq!(rows_for(0, 0), ROWS_MAX);
    }
}
