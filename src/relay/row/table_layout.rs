//! Layout of a session's outbox: Tidings' own table or a Debezium table, and the sources that can
//! read it.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::{
    debezium::{FOREIGN_CELLS, Layout, RowBuffer},
    native::{RowError, TABLE_CELLS, TableRow},
};
use crate::{
    postgres::{
        CopyError, CopyRows,
        replication::{Cell, Column},
    },
    relay::{
        RelayOptions, SourceKind,
        error::Interruption,
        leadership::relay_store::within,
        options::debezium::{DebeziumOutbox, ExistingRows, OutboxRows},
        position::{Position, Snapshot},
    },
};

/// The outbox of a session.
#[derive(Clone, Debug)]
pub(crate) enum TableLayout {
    /// Tidings' own table.
    Native,
    /// A Debezium table.
    Debezium {
        layout: Box<Layout>,
        /// The reason why it can be read only from the log. `None` if the table can be read too.
        log_only: Option<String>,
    },
}

/// The values of a row that was copied from the table.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "most rows are Tidings' own, and these are not allocated"
)]
pub(crate) enum CopiedRow<'a> {
    Native([Cell<'a>; TABLE_CELLS]),
    Debezium(Box<[Cell<'a>]>),
}

impl<'a> CopiedRow<'a> {
    /// Returns the row's `seq`.
    pub(crate) fn seq(&self) -> Cell<'a> {
        match self {
            Self::Native(cells) => cells[1],
            Self::Debezium(cells) => cells[0],
        }
    }
}

impl TableLayout {
    /// Returns the reason why only the log can be read, if there is one.
    pub(crate) fn log_only(&self) -> Option<&str> {
        match self {
            Self::Native => None,
            Self::Debezium { log_only, .. } => log_only.as_deref(),
        }
    }

    /// Returns a select list of a row's values.
    pub(crate) fn select_list(&self) -> String {
        match self {
            Self::Native => TableRow::select_list(),
            Self::Debezium { layout, .. } => layout.select_list(),
        }
    }

    /// Returns the sort order of the rows that a snapshot sees before the log starts.
    pub(crate) fn natural_order(&self) -> String {
        match self {
            Self::Native => "seq".into(),
            Self::Debezium { layout, .. } => layout.natural_order(),
        }
    }

    /// Returns the rows that were copied with [`select_list`](Self::select_list).
    ///
    /// # Errors
    ///
    /// Returns an error if the server sent another format.
    pub(crate) fn rows<'a>(
        &self,
        bytes: &'a [u8],
    ) -> Result<Box<dyn Iterator<Item = Result<CopiedRow<'a>, CopyError>> + Send + 'a>, CopyError>
    {
        Ok(match self {
            Self::Native => {
                Box::new(CopyRows::<TABLE_CELLS>::new(bytes)?.map(|row| row.map(CopiedRow::Native)))
            }
            Self::Debezium { .. } => Box::new(
                CopyRows::<FOREIGN_CELLS>::new(bytes)?
                    .map(|row| row.map(|cells| CopiedRow::Debezium(Box::new(cells)))),
            ),
        })
    }

    /// Decodes the event of a copied row. An event without a time of its own gets `now`.
    ///
    /// # Errors
    ///
    /// Returns an error if a value is missing or does not match its column's type.
    pub(crate) fn event<'a>(
        &'a self,
        row: &CopiedRow<'a>,
        now: i64,
        scratch: &'a mut RowBuffer,
    ) -> Result<TableRow<'a>, RowError> {
        match (self, row) {
            (_, CopiedRow::Native(cells)) => TableRow::from_cells(cells),
            (Self::Debezium { layout, .. }, CopiedRow::Debezium(cells)) => {
                layout.table_row(cells, now, scratch)
            }
            (Self::Native, CopiedRow::Debezium(_)) => {
                unreachable!("rows are copied and read in the same layout")
            }
        }
    }
}

/// Examines the outbox: its columns, and the sources that can read it.
///
/// # Errors
///
/// Returns a refusal with the remedy if the table is missing or cannot be read, or an error if the
/// connection is lost.
pub(crate) async fn examine(
    options: &RelayOptions,
    session: &mut PgConnection,
) -> Result<TableLayout, Interruption> {
    let Some(outbox) = &options.debezium else {
        return Ok(TableLayout::Native);
    };
    let columns = columns(options, session).await?;
    let layout = Box::new(Layout::of(outbox, &columns)?);
    let log_only = log_only(outbox, &layout);
    if let Some(reason) = &log_only
        && options.source == SourceKind::Poll
    {
        return Err(Interruption::Refused(format!(
            "source is poll, and {reason}: use source = \"auto\" or \"wal\""
        )));
    }
    Ok(TableLayout::Debezium { layout, log_only })
}

/// Returns the columns of a Debezium table.
async fn columns(
    options: &RelayOptions,
    session: &mut PgConnection,
) -> Result<Vec<Column>, Interruption> {
    let doing = "reading the outbox's columns";
    let (schema, table) = options.table();
    let rows = sqlx::query(
        "select a.attname::text as name, a.atttypid::bigint as type_oid, c.relkind::text as kind
         from pg_attribute a join pg_class c on c.oid = a.attrelid
             join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = $1 and c.relname = $2 and a.attnum > 0 and not a.attisdropped
             order by a.attnum",
    );
    let rows = within(doing, rows.bind(schema).bind(table).fetch_all(session)).await?;
    let column = |row: &sqlx::postgres::PgRow| -> Result<Column, sqlx::Error> {
        let type_oid = u32::try_from(row.try_get::<i64, _>("type_oid")?).unwrap_or_default();
        Ok(Column {
            name: row.try_get("name")?,
            type_oid,
        })
    };
    let columns = rows
        .iter()
        .map(column)
        .collect::<Result<Vec<_>, _>>()
        .map_err(Interruption::sql(doing))?;
    let kind: String = rows
        .first()
        .map_or(Ok(String::new()), |row| row.try_get("kind"))
        .map_err(Interruption::sql(doing))?;
    match kind.as_str() {
        "r" => Ok(columns),
        "" => Err(Interruption::Refused(format!(
            "there is no table {schema}.{table} in this database: set its name in outbox.table \
             exactly as Postgres stores it (select schemaname, tablename from pg_tables)"
        ))),
        _ => Err(Interruption::Refused(format!(
            "{schema}.{table} is not a plain table (relkind {kind}): a partitioned table or a \
             view cannot be read in the order of the log"
        ))),
    }
}

/// Returns the reason why only the log can be read, if there is one.
fn log_only(outbox: &DebeziumOutbox, layout: &Layout) -> Option<String> {
    let DebeziumOutbox { schema, table, .. } = outbox;
    if outbox.rows == OutboxRows::Deleted {
        Some("outbox.rows is deleted: rows do not stay in the table".to_owned())
    } else if outbox.hand_over.is_some() {
        Some(
            "outbox.takes_over is set: the relay takes the place of a connector by reading the \
             log; without this key it reads the table too"
                .to_owned(),
        )
    } else if !layout.is_ordered() {
        Some(format!(
            "table {schema}.{table} has no columns `seq bigint` and `xid xid8`, so only the log \
             contains its order (docs/from-debezium.md has the statements that add them)"
        ))
    } else {
        None
    }
}

impl TableLayout {
    /// Restricts the layout to the log if the position does not allow the table yet. A relay that
    /// has read the log may read the table only once its position sees the transactions that added
    /// `seq` and `xid`: older rows have the numbers that those transactions assigned.
    ///
    /// # Errors
    ///
    /// Returns a refusal if the options conflict, or an error if the connection is lost.
    pub(crate) async fn judge(
        self,
        options: &RelayOptions,
        session: &mut PgConnection,
        position: &Position,
    ) -> Result<Self, Interruption> {
        let Self::Debezium {
            layout,
            log_only: None,
        } = self
        else {
            return Ok(self);
        };
        if position.is_start() {
            let leaves = options
                .debezium
                .as_ref()
                .is_some_and(|outbox| outbox.existing == ExistingRows::Leave);
            if leaves && options.source == SourceKind::Poll {
                return Err(Interruption::Refused(format!(
                    "outbox.existing is leave, which needs the log, and source is poll: run \
                     `tidings relay skip --all --name {}`, or start with source = \"auto\"",
                    options.name
                )));
            }
            if leaves {
                let reason = "outbox.existing is leave: the relay's first start reads only the log";
                return Ok(Self::Debezium {
                    layout,
                    log_only: Some(reason.into()),
                });
            }
            return Ok(Self::Debezium {
                layout,
                log_only: None,
            });
        }
        let doing = "looking up when the outbox's columns were added";
        // xmin is the row's last writer: the statement that added the column, or a later one.
        let sql = format!(
            "select xmin::text as xid, pg_current_snapshot()::text as now from pg_attribute
                 where attrelid = '{}'::regclass and attname in ('seq', 'xid')",
            options.quoted_table().replace('\'', "''")
        );
        let rows = within(doing, sqlx::query(AssertSqlSafe(sql)).fetch_all(session)).await?;
        for row in &rows {
            let text = |column: &str| {
                row.try_get::<String, _>(column)
                    .map_err(Interruption::sql(doing))
            };
            let (Ok(xid), Ok(now)) = (
                text("xid")?.parse::<u32>(),
                text("now")?.parse::<Snapshot>(),
            ) else {
                continue;
            };
            if !position.snapshot.sees(not_after(xid, now.xmax())) {
                let reason = "columns seq and xid are newer than the relay's position: the relay \
                              reads the log until it has passed them; restart it then";
                return Ok(Self::Debezium {
                    layout,
                    log_only: Some(reason.into()),
                });
            }
        }
        Ok(Self::Debezium {
            layout,
            log_only: None,
        })
    }
}

/// Returns the largest assigned full id with these 32 bits. At worst it is one cycle of the counter
/// too late, which only prolongs the wait.
fn not_after(xid: u32, next: u64) -> u64 {
    let same_turn = (next & !0xffff_ffff) | u64::from(xid);
    if same_turn < next || same_turn < 1 << 32 {
        same_turn
    } else {
        same_turn - (1 << 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_32_bits_is_taken_for_the_latest_that_it_may_be() {
        assert_eq!(not_after(7, 100), 7);
        assert_eq!(not_after(7, (3 << 32) + 100), (3 << 32) + 7);
        assert_eq!(not_after(200, (3 << 32) + 100), (2 << 32) + 200);
    }
}
