//! Decoding of rows of Tidings' own outbox. Pure; events borrow the row's bytes.

use uuid::Uuid;

use super::debezium::{Layout, RowBuffer};
use crate::{
    kafka::{Outgoing, Value},
    postgres::replication::{Cell, Column, DecodeError, POSTGRES_EPOCH_MICROS, Relation, Tuple},
};

/// Version byte at the start of jsonb's binary form.
const JSONB_VERSION: u8 = 1;

/// One event as read from the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row<'a> {
    /// Order of insertion.
    pub(crate) seq: i64,
    pub(crate) event: Outgoing<'a>,
    /// Commit time of its transaction in microseconds since the Unix epoch, if the log was read.
    pub(crate) committed_at: Option<i64>,
    /// The reason why the event is undeliverable. Missing values then have placeholders without a
    /// meaning.
    pub(crate) fault: Option<Fault<'a>>,
}

/// A fault of a single row whose event is identified. The constraints of an unaltered outbox
/// prevent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault<'a> {
    pub(crate) column: &'a str,
    pub(crate) problem: &'static str,
}

/// A row whose event cannot be identified, or a table that is not an outbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RowError {
    #[error(
        "table {table} has no column `{column}`: run `tidings migrate`, or set the correct schema"
    )]
    MissingColumn { table: String, column: &'static str },
    #[error(
        "column `{column}` of event seq {} is {problem}: the table was altered. Correct the column \
         and the row, and drop the relay's slot, so that the relay reads the row from the table \
         and creates a new slot; or run `tidings relay skip --event ID`",
        .seq.map_or_else(|| "?".to_owned(), |seq| seq.to_string())
    )]
    Column {
        seq: Option<i64>,
        column: &'static str,
        problem: &'static str,
    },
    #[error("table {table} has no column `{column}`: set the column's name in outbox.columns")]
    MissingOutboxColumn { table: String, column: String },
    #[error(
        "column `{column}` of table {table} has a type that cannot be sent unchanged: expected \
         {expected}; name another column, or add a generated column that casts it"
    )]
    OutboxColumnType {
        table: String,
        column: String,
        expected: &'static str,
    },
    #[error(
        "column `{column}` of event {} of table {table} is {problem}: `tidings relay skip --all` \
         continues with new events",
        .id.map_or_else(|| "?".to_owned(), |id| id.to_string())
    )]
    OutboxColumn {
        table: String,
        column: String,
        id: Option<Uuid>,
        problem: &'static str,
    },
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl RowError {
    /// Returns the event's `seq`, if it is known.
    pub(crate) fn seq(&self) -> Option<i64> {
        match self {
            Self::Column { seq, .. } => *seq,
            _ => None,
        }
    }
}

/// The columns of the outbox, in the order of [`NAMES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Seq,
    Id,
    AggregateType,
    AggregateId,
    Type,
    Version,
    Payload,
    PayloadBytes,
    Headers,
    OccurredAt,
    Topic,
}

/// Number of columns of a row.
pub(crate) const CELLS: usize = 11;

const NAMES: [(&str, Field); CELLS] = [
    ("seq", Field::Seq),
    ("id", Field::Id),
    ("aggregatetype", Field::AggregateType),
    ("aggregateid", Field::AggregateId),
    ("type", Field::Type),
    ("version", Field::Version),
    ("payload", Field::Payload),
    ("payload_bytes", Field::PayloadBytes),
    ("headers", Field::Headers),
    ("occurred_at", Field::OccurredAt),
    ("topic", Field::Topic),
];

/// Assignment of a streamed row's values to the columns of the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Columns {
    fields: Vec<Option<Field>>,
}

/// Columns of the table that events are read from, in either layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TableColumns {
    /// Tidings' own table.
    Native(Columns),
    /// A Debezium outbox.
    Debezium(Box<Layout>),
}

impl TableColumns {
    /// Decodes the event of a streamed row. `committed_at` is the commit time of its transaction,
    /// in microseconds since the Unix epoch.
    ///
    /// # Errors
    ///
    /// Returns an error if a value is missing or does not match its column's type.
    pub(crate) fn read<'a>(
        &'a self,
        tuple: &Tuple<'a>,
        committed_at: i64,
        scratch: &'a mut RowBuffer,
    ) -> Result<Row<'a>, RowError> {
        match self {
            Self::Native(columns) => columns.read(tuple),
            Self::Debezium(layout) => layout.read(tuple, committed_at, scratch),
        }
    }
}

impl Columns {
    /// Finds the outbox's columns among a table's.
    ///
    /// # Errors
    ///
    /// Returns an error if a column is missing.
    pub(crate) fn of(relation: &Relation) -> Result<Self, RowError> {
        let field = |column: &Column| {
            NAMES
                .iter()
                .find(|(name, _)| *name == column.name)
                .map(|(_, field)| *field)
        };
        let fields: Vec<_> = relation.columns.iter().map(field).collect();
        for (name, field) in NAMES {
            if !fields.contains(&Some(field)) {
                return Err(RowError::MissingColumn {
                    table: format!("{}.{}", relation.schema, relation.table),
                    column: name,
                });
            }
        }
        Ok(Self { fields })
    }

    /// Returns all columns in the order of [`NAMES`], for the fuzz target.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn in_order() -> Self {
        Self {
            fields: NAMES.iter().map(|(_, field)| Some(*field)).collect(),
        }
    }

    /// Decodes the event of a streamed row.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Row::from_cells`].
    pub(crate) fn read<'a>(&self, tuple: &Tuple<'a>) -> Result<Row<'a>, RowError> {
        let mut cells = [Cell::Null; CELLS];
        for (cell, field) in tuple.cells().zip(&self.fields) {
            let cell = cell?;
            if let Some(field) = field {
                cells[*field as usize] = cell;
            }
        }
        Row::from_cells(&cells)
    }
}

/// A row of the table, with the transaction that places it in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableRow<'a> {
    /// The transaction that wrote it.
    pub(crate) xid: u64,
    pub(crate) row: Row<'a>,
}

/// Number of columns of a row of the table.
pub(crate) const TABLE_CELLS: usize = CELLS + 1;

impl<'a> TableRow<'a> {
    /// Returns a select list of the columns in the order of [`TableRow::from_cells`].
    pub(crate) fn select_list() -> String {
        format!("xid, {}", Row::select_list())
    }

    /// Decodes a row from these values.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Row::from_cells`].
    pub(crate) fn from_cells(cells: &[Cell<'a>; TABLE_CELLS]) -> Result<Self, RowError> {
        let mut rest = [Cell::Null; CELLS];
        rest.copy_from_slice(&cells[1..]);
        let row = Row::from_cells(&rest)?;
        let xid = integer8(cells[0]).map_err(|problem| RowError::Column {
            seq: Some(row.seq),
            column: "xid",
            problem,
        })?;
        Ok(Self {
            xid: xid.cast_unsigned(),
            row,
        })
    }
}

impl<'a> Row<'a> {
    /// Returns a select list of the columns in the order of [`Row::from_cells`].
    pub(crate) fn select_list() -> String {
        NAMES.map(|(name, _)| name).join(", ")
    }

    /// Decodes an event from values in the order of [`Row::select_list`].
    ///
    /// # Errors
    ///
    /// Returns an error that names event and column if a value does not match its column's type, or
    /// if the event cannot be identified. Other missing values become the row's [`Fault`].
    pub(crate) fn from_cells(cells: &[Cell<'a>; CELLS]) -> Result<Self, RowError> {
        let seq = read(None, cells, Field::Seq, integer8)?;
        let (at, mut fault) = (Some(seq), None);
        let mut there = |field: Field| {
            let there = cells[field as usize] != Cell::Null;
            if !there {
                fault.get_or_insert(Fault {
                    column: NAMES[field as usize].0,
                    problem: NULL,
                });
            }
            there
        };
        let value = match (
            cells[Field::Payload as usize],
            cells[Field::PayloadBytes as usize],
        ) {
            (Cell::Null, Cell::Null) => Value::Tombstone,
            (Cell::Null, _) => Value::Bytes(read(at, cells, Field::PayloadBytes, binary)?),
            _ => Value::Json(read(at, cells, Field::Payload, json)?.as_bytes()),
        };
        let event = Outgoing {
            id: read(at, cells, Field::Id, uuid)?,
            aggregate_type: read(at, cells, Field::AggregateType, text)?,
            aggregate_id: read(at, cells, Field::AggregateId, text)?,
            event_type: if there(Field::Type) {
                read(at, cells, Field::Type, text)?
            } else {
                ""
            },
            version: if there(Field::Version) {
                read(at, cells, Field::Version, integer4)?
            } else {
                1
            },
            value,
            headers: if there(Field::Headers) {
                read(at, cells, Field::Headers, json)?
            } else {
                "{}"
            },
            occurred_at: if there(Field::OccurredAt) {
                read(at, cells, Field::OccurredAt, timestamp)?
            } else {
                0
            },
            topic: match cells[Field::Topic as usize] {
                Cell::Null => None,
                _ => Some(read(at, cells, Field::Topic, text)?),
            },
        };
        Ok(Row {
            seq,
            event,
            committed_at: None,
            fault,
        })
    }
}

/// Reads one column. `parse` returns the problem, and this function adds the column.
fn read<'a, T>(
    seq: Option<i64>,
    cells: &[Cell<'a>; CELLS],
    field: Field,
    parse: impl FnOnce(Cell<'a>) -> Result<T, &'static str>,
) -> Result<T, RowError> {
    let column = NAMES[field as usize].0;
    parse(cells[field as usize]).map_err(|problem| RowError::Column {
        seq,
        column,
        problem,
    })
}

pub(crate) const NULL: &str = "null where a value is needed";
const LENGTH: &str = "not of its type's length";
const AS_TEXT: &str = "sent as text although the binary form was requested";

fn bytes_of(cell: Cell<'_>) -> Result<&[u8], &'static str> {
    match cell {
        Cell::Null | Cell::Unchanged => Err(NULL),
        Cell::Text(bytes) | Cell::Binary(bytes) => Ok(bytes),
    }
}

fn text(cell: Cell<'_>) -> Result<&str, &'static str> {
    std::str::from_utf8(bytes_of(cell)?).map_err(|_| "not UTF-8")
}

fn json(cell: Cell<'_>) -> Result<&str, &'static str> {
    let text = text(cell)?;
    // json has no version byte, and no JSON text starts with this byte.
    Ok(text.strip_prefix(char::from(JSONB_VERSION)).unwrap_or(text))
}

fn binary(cell: Cell<'_>) -> Result<&[u8], &'static str> {
    match cell {
        Cell::Binary(bytes) => Ok(bytes),
        Cell::Text(_) => Err(AS_TEXT),
        Cell::Null | Cell::Unchanged => Err(NULL),
    }
}

fn fixed<const N: usize>(cell: Cell<'_>) -> Result<[u8; N], &'static str> {
    binary(cell)?.try_into().map_err(|_| LENGTH)
}

fn integer8(cell: Cell<'_>) -> Result<i64, &'static str> {
    fixed(cell).map(i64::from_be_bytes)
}

fn integer4(cell: Cell<'_>) -> Result<i32, &'static str> {
    fixed(cell).map(i32::from_be_bytes)
}

fn uuid(cell: Cell<'_>) -> Result<Uuid, &'static str> {
    fixed(cell).map(Uuid::from_bytes)
}

fn timestamp(cell: Cell<'_>) -> Result<i64, &'static str> {
    // Infinity is the largest or the smallest number. It saturates to a time that every reader
    // rejects.
    integer8(cell).map(|micros| micros.saturating_add(POSTGRES_EPOCH_MICROS))
}

// === impl Display ===

impl std::fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "column `{}` is {}", self.column, self.problem)
    }
}
