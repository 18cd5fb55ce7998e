//! Decoding of rows of a Debezium outbox. Pure; events borrow the row's bytes where possible.

use std::fmt::Write as _;

use uuid::Uuid;

use super::native::{Fault, NULL, Row, RowError, TableRow};
use crate::{
    kafka::{Outgoing, Value},
    postgres::replication::{Cell, Column, POSTGRES_EPOCH_MICROS, Tuple},
    relay::options::debezium::{ADDITIONAL_MAX, DebeziumOutbox, OutboxField, Placement},
};

/// Number of values of a row: the outbox's own, then the additional ones.
pub(crate) const FOREIGN_CELLS: usize = 32;

/// Places of the values of a row. Additional columns follow.
const SEQ: usize = 0;
const XID: usize = 1;
const FIELDS: usize = 2;
const ADDITIONAL: usize = FOREIGN_CELLS - ADDITIONAL_MAX;

const LENGTH: &str = "not of its type's length";
const UTF8: &str = "not UTF-8";

/// The columns of a table and their uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    outbox: DebeziumOutbox,
    /// For each column of the table: the place of its value in a row.
    places: Vec<Option<usize>>,
    /// A column may have several uses: pairs of the place that has its value and a place to copy
    /// the value to.
    copies: Vec<(usize, usize)>,
    /// For each place: the column's name and type.
    columns: Vec<Option<(String, Kind)>>,
}

/// Type of a column's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// text, varchar, citext, an enum: UTF-8 bytes.
    Text,
    Json,
    Jsonb,
    Bytes,
    Uuid,
    Boolean,
    Integer2,
    Integer4,
    Integer8,
    Xid8,
    Timestamp,
    Other(u32),
}

/// Buffers for values that cannot be borrowed from the row. One per row.
#[derive(Debug, Default)]
pub(crate) struct RowBuffer {
    key: String,
    headers: String,
    value: String,
}

impl Kind {
    /// Returns the kind of a type by its oid (`pg_type.dat`: the oids of built-in types never
    /// change).
    fn of(type_oid: u32) -> Self {
        match type_oid {
            16 => Self::Boolean,
            17 => Self::Bytes,
            20 => Self::Integer8,
            21 => Self::Integer2,
            23 => Self::Integer4,
            114 => Self::Json,
            1114 | 1184 => Self::Timestamp,
            2950 => Self::Uuid,
            3802 => Self::Jsonb,
            5069 => Self::Xid8,
            // text, name, char(n), varchar. Oids from 16,384 on are assigned by the database:
            // enums, citext, domains.
            25 | 19 | 1042 | 1043 | 16_384.. => Self::Text,
            other => Self::Other(other),
        }
    }

    /// Returns `true` if a value has a plain text form for a key, a header or a member of the
    /// envelope.
    fn is_plain(self) -> bool {
        matches!(
            self,
            Self::Text
                | Self::Json
                | Self::Jsonb
                | Self::Uuid
                | Self::Boolean
                | Self::Integer2
                | Self::Integer4
                | Self::Integer8
        )
    }
}

impl Layout {
    /// Finds the outbox's columns among a table's.
    ///
    /// # Errors
    ///
    /// Returns an error with the remedy if a column is missing or has an unsupported type.
    pub(crate) fn of(outbox: &DebeziumOutbox, columns: &[Column]) -> Result<Self, RowError> {
        let table = format!("{}.{}", outbox.schema, outbox.table);
        let mut layout = Self {
            outbox: outbox.clone(),
            places: vec![None; columns.len()],
            copies: Vec::new(),
            columns: vec![None; FOREIGN_CELLS],
        };
        let additional = outbox
            .additional
            .iter()
            .enumerate()
            .map(|(at, one)| (ADDITIONAL + at, one.column.as_str(), true));
        let fields = OutboxField::ALL.into_iter().filter_map(|field| {
            Some((
                FIELDS + field as usize,
                outbox.column(field)?,
                is_needed(outbox, field),
            ))
        });
        let own = [(SEQ, "seq", false), (XID, "xid", false)];
        let mut selected: Vec<(usize, usize)> = Vec::new();
        for (place, name, needed) in own.into_iter().chain(fields).chain(additional) {
            match columns.iter().position(|column| column.name == name) {
                Some(at) => {
                    let kind = Kind::of(columns[at].type_oid);
                    if place < FIELDS
                        && !matches!((place, kind), (SEQ, Kind::Integer8) | (XID, Kind::Xid8))
                    {
                        // An unrelated column with the same name.
                        continue;
                    }
                    layout.columns[place] = Some((name.to_owned(), kind));
                    selected.push((at, place));
                }
                None if needed => {
                    return Err(RowError::MissingOutboxColumn {
                        table,
                        column: name.to_owned(),
                    });
                }
                None => {}
            }
        }
        for (at, place) in selected {
            match layout.places[at] {
                None => layout.places[at] = Some(place),
                Some(first) => layout.copies.push((first, place)),
            }
        }
        layout.require_types(&table)?;
        Ok(layout)
    }

    fn require_types(&self, table: &str) -> Result<(), RowError> {
        for (place, column) in self.columns.iter().enumerate() {
            let Some((name, kind)) = column else { continue };
            let (fits, expected) = match place
                .checked_sub(FIELDS)
                .and_then(|at| OutboxField::ALL.get(at))
            {
                _ if place < FIELDS => (true, ""),
                Some(OutboxField::Id) => (*kind == Kind::Uuid, "uuid"),
                Some(OutboxField::AggregateType | OutboxField::Type) => {
                    (*kind == Kind::Text, "text")
                }
                Some(OutboxField::AggregateId) => (
                    matches!(
                        kind,
                        Kind::Text | Kind::Uuid | Kind::Integer2 | Kind::Integer4 | Kind::Integer8
                    ),
                    "text, uuid or an integer",
                ),
                Some(OutboxField::Payload) => (
                    matches!(kind, Kind::Text | Kind::Json | Kind::Jsonb | Kind::Bytes),
                    "json, jsonb, text or bytea",
                ),
                Some(OutboxField::OccurredAt) => (
                    matches!(kind, Kind::Timestamp | Kind::Integer8),
                    "timestamptz, timestamp (UTC) or bigint (milliseconds)",
                ),
                None => (
                    kind.is_plain(),
                    "text, json, jsonb, uuid, boolean or an integer",
                ),
            };
            if !fits {
                return Err(RowError::OutboxColumnType {
                    table: table.to_owned(),
                    column: name.clone(),
                    expected,
                });
            }
        }
        Ok(())
    }

    /// Returns `true` if the table shows order and completeness: it has `seq bigint` and `xid
    /// xid8`.
    pub(crate) fn is_ordered(&self) -> bool {
        self.columns[SEQ].is_some() && self.columns[XID].is_some()
    }

    /// Returns a select list of a row's values in the order of places.
    pub(crate) fn select_list(&self) -> String {
        let column = |(place, column): (usize, &Option<(String, Kind)>)| {
            let alias = if place == SEQ {
                "seq".to_owned()
            } else {
                format!("c{place}")
            };
            match column {
                Some((name, _)) => format!("\"{}\" as {alias}", name.replace('"', "\"\"")),
                None => format!("null::text as {alias}"),
            }
        };
        self.columns
            .iter()
            .enumerate()
            .map(column)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Returns the sort order of existing rows: `seq` if the table has it, otherwise their time if
    /// they have one, otherwise their physical order.
    pub(crate) fn natural_order(&self) -> String {
        match &self.columns[FIELDS + OutboxField::OccurredAt as usize] {
            _ if self.columns[SEQ].is_some() => "seq".into(),
            Some((name, _)) => format!("\"{}\", ctid", name.replace('"', "\"\"")),
            None => "ctid".into(),
        }
    }

    /// Decodes the event of a streamed row.
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
        let mut cells = [Cell::Null; FOREIGN_CELLS];
        for (cell, place) in tuple.cells().zip(&self.places) {
            let cell = cell?;
            if let Some(place) = place {
                cells[*place] = cell;
            }
        }
        for (from, to) in &self.copies {
            cells[*to] = cells[*from];
        }
        self.row(&cells, committed_at, scratch)
    }

    /// Decodes a row from these values, in the order of places.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Layout::read`].
    pub(crate) fn table_row<'a>(
        &'a self,
        cells: &[Cell<'a>],
        now: i64,
        scratch: &'a mut RowBuffer,
    ) -> Result<TableRow<'a>, RowError> {
        let row = self.row(cells, now, scratch)?;
        let xid = match self.columns[XID] {
            Some(_) => self.cell(cells, XID, integer8)?.cast_unsigned(),
            None => 0,
        };
        Ok(TableRow { xid, row })
    }

    /// Returns the row's `seq`, or zero if the table has no such column.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Layout::read`].
    pub(crate) fn seq(&self, cells: &[Cell<'_>]) -> Result<i64, RowError> {
        if self.columns[SEQ].is_some() {
            self.cell(cells, SEQ, integer8)
        } else {
            Ok(0)
        }
    }

    fn row<'a>(
        &'a self,
        cells: &[Cell<'a>],
        otherwise: i64,
        scratch: &'a mut RowBuffer,
    ) -> Result<Row<'a>, RowError> {
        let seq = self.seq(cells)?;
        self.write_headers(cells, &mut scratch.headers)?;
        let wrapped = self.write_envelope(cells, &mut scratch.value)?;
        let key = FIELDS + OutboxField::AggregateId as usize;
        let borrowed_key = self.kind(key) == Some(Kind::Text);
        if !borrowed_key && cells[key] != Cell::Null {
            self.cell(cells, key, |cell| {
                plain(self.kind(key), cell, &mut scratch.key)
            })?;
        }
        let scratch: &'a RowBuffer = scratch;
        let payload = FIELDS + OutboxField::Payload as usize;
        let value = match (self.kind(payload), cells[payload]) {
            _ if wrapped => Value::Json(scratch.value.as_bytes()),
            (_, Cell::Null) => Value::Tombstone,
            (Some(Kind::Bytes), _) => Value::Bytes(self.cell(cells, payload, bytes_of)?),
            (Some(Kind::Jsonb), _) => Value::Json(self.cell(cells, payload, jsonb)?.as_bytes()),
            _ => Value::Json(self.cell(cells, payload, text)?.as_bytes()),
        };
        let field = |field: OutboxField| FIELDS + field as usize;
        let occurred_at = match self.kind(field(OutboxField::OccurredAt)) {
            None => otherwise,
            Some(_) if cells[field(OutboxField::OccurredAt)] == Cell::Null => otherwise,
            Some(Kind::Integer8) => self
                .cell(cells, field(OutboxField::OccurredAt), integer8)?
                .saturating_mul(1_000),
            Some(_) => self
                .cell(cells, field(OutboxField::OccurredAt), integer8)?
                .saturating_add(POSTGRES_EPOCH_MICROS),
        };
        let event = Outgoing {
            id: self.cell(cells, field(OutboxField::Id), uuid)?,
            aggregate_type: match cells[field(OutboxField::AggregateType)] {
                Cell::Null => "",
                _ => self.cell(cells, field(OutboxField::AggregateType), text)?,
            },
            aggregate_id: match cells[key] {
                Cell::Null => "",
                _ if borrowed_key => self.cell(cells, key, text)?,
                _ => &scratch.key,
            },
            event_type: match self.kind(field(OutboxField::Type)) {
                Some(_) if cells[field(OutboxField::Type)] != Cell::Null => {
                    self.cell(cells, field(OutboxField::Type), text)?
                }
                _ => "",
            },
            version: 1,
            value,
            headers: &scratch.headers,
            occurred_at,
            topic: None,
        };
        Ok(Row {
            seq,
            event,
            fault: self.fault(cells),
        })
    }

    /// Returns the fault of a row without a topic or a key. Every event needs both, but such a
    /// table may accept nulls.
    fn fault(&self, cells: &[Cell<'_>]) -> Option<Fault<'_>> {
        let needed = [OutboxField::AggregateType, OutboxField::AggregateId]
            .map(|field| FIELDS + field as usize);
        let missing = needed
            .into_iter()
            .find(|place| cells[*place] == Cell::Null)?;
        self.columns[missing].as_ref().map(|(column, _)| Fault {
            column,
            problem: NULL,
        })
    }

    /// Writes the additional headers as a JSON object, in the configured order.
    fn write_headers(&self, cells: &[Cell<'_>], out: &mut String) -> Result<(), RowError> {
        let mut between = '{';
        for (at, one) in self
            .outbox
            .additional
            .iter()
            .enumerate()
            .filter(|(_, one)| one.placement == Placement::Header)
        {
            out.push(between);
            between = ',';
            quote(&one.alias, out);
            out.push(':');
            let (place, mut value) = (ADDITIONAL + at, String::new());
            if cells[place] == Cell::Null {
                out.push_str("null");
            } else {
                self.cell(cells, place, |cell| {
                    plain(self.kind(place), cell, &mut value)
                })?;
                quote(&value, out);
            }
        }
        out.push_str(if between == '{' { "{}" } else { "}" });
        Ok(())
    }

    /// Writes the payload and the additional columns beside it in the format of EventRouter's
    /// envelope. Returns `false` if no column belongs to the envelope.
    fn write_envelope(&self, cells: &[Cell<'_>], out: &mut String) -> Result<bool, RowError> {
        let in_envelope = || {
            self.outbox
                .additional
                .iter()
                .enumerate()
                .filter(|(_, one)| one.placement == Placement::Envelope)
        };
        if in_envelope().next().is_none() {
            return Ok(false);
        }
        out.push_str("{\"payload\":");
        self.member(
            cells,
            FIELDS + OutboxField::Payload as usize,
            self.outbox.expand_json,
            out,
        )?;
        for (at, one) in in_envelope() {
            out.push(',');
            quote(&one.alias, out);
            out.push(':');
            self.member(cells, ADDITIONAL + at, false, out)?;
        }
        out.push('}');
        Ok(true)
    }

    /// Writes one value of the envelope in the format of Connect's JsonConverter without schemas.
    fn member(
        &self,
        cells: &[Cell<'_>],
        place: usize,
        expand: bool,
        out: &mut String,
    ) -> Result<(), RowError> {
        let kind = self.kind(place);
        if cells[place] == Cell::Null {
            out.push_str("null");
            return Ok(());
        }
        self.cell(cells, place, |cell| {
            let mut value = String::new();
            match kind {
                Some(Kind::Bytes) => {
                    use base64::Engine as _;
                    base64::engine::general_purpose::STANDARD
                        .encode_string(bytes_of(cell)?, &mut value);
                }
                _ => plain(kind, cell, &mut value)?,
            }
            match kind {
                Some(Kind::Boolean | Kind::Integer2 | Kind::Integer4 | Kind::Integer8) => {
                    out.push_str(&value)
                }
                Some(Kind::Json | Kind::Jsonb) if expand => out.push_str(&value),
                _ => quote(&value, out),
            }
            Ok(())
        })
    }

    fn kind(&self, place: usize) -> Option<Kind> {
        self.columns[place].as_ref().map(|(_, kind)| *kind)
    }

    /// Reads one value. `parse` returns the problem, and this function adds the place.
    fn cell<'a, T>(
        &self,
        cells: &[Cell<'a>],
        place: usize,
        parse: impl FnOnce(Cell<'a>) -> Result<T, &'static str>,
    ) -> Result<T, RowError> {
        parse(cells[place]).map_err(|problem| RowError::OutboxColumn {
            table: format!("{}.{}", self.outbox.schema, self.outbox.table),
            column: self.columns[place]
                .as_ref()
                .map(|(name, _)| name.clone())
                .unwrap_or_default(),
            id: uuid(cells[FIELDS + OutboxField::Id as usize]).ok(),
            problem,
        })
    }
}

/// Returns `true` if a table without the field cannot be read.
fn is_needed(outbox: &DebeziumOutbox, field: OutboxField) -> bool {
    field != OutboxField::Type
        || outbox
            .columns
            .iter()
            .any(|(named, _)| *named == OutboxField::Type)
}

/// Writes the text of a value: text unchanged, other types as Java writes them.
fn plain(kind: Option<Kind>, cell: Cell<'_>, out: &mut String) -> Result<(), &'static str> {
    let number = match kind {
        Some(Kind::Boolean) => {
            out.push_str(if fixed::<1>(cell)? == [0] {
                "false"
            } else {
                "true"
            });
            return Ok(());
        }
        Some(Kind::Uuid) => {
            out.push_str(uuid(cell)?.hyphenated().encode_lower(&mut [0; 36]));
            return Ok(());
        }
        Some(Kind::Integer2) => i64::from(i16::from_be_bytes(fixed(cell)?)),
        Some(Kind::Integer4) => i64::from(i32::from_be_bytes(fixed(cell)?)),
        Some(Kind::Integer8) => integer8(cell)?,
        Some(Kind::Jsonb) => {
            out.push_str(jsonb(cell)?);
            return Ok(());
        }
        _ => {
            out.push_str(text(cell)?);
            return Ok(());
        }
    };
    write!(out, "{number}").map_err(|_| LENGTH)
}

/// Writes a JSON string.
fn quote(text: &str, out: &mut String) {
    out.push_str(&serde_json::to_string(text).expect("a string is JSON"));
}

fn bytes_of(cell: Cell<'_>) -> Result<&[u8], &'static str> {
    match cell {
        Cell::Null | Cell::Unchanged => Err(NULL),
        Cell::Text(bytes) | Cell::Binary(bytes) => Ok(bytes),
    }
}

fn text(cell: Cell<'_>) -> Result<&str, &'static str> {
    std::str::from_utf8(bytes_of(cell)?).map_err(|_| UTF8)
}

fn jsonb(cell: Cell<'_>) -> Result<&str, &'static str> {
    // The binary form starts with a version byte, which is 1.
    Ok(text(cell)?.trim_start_matches('\u{1}'))
}

fn fixed<const N: usize>(cell: Cell<'_>) -> Result<[u8; N], &'static str> {
    bytes_of(cell)?.try_into().map_err(|_| LENGTH)
}

fn integer8(cell: Cell<'_>) -> Result<i64, &'static str> {
    fixed(cell).map(i64::from_be_bytes)
}

fn uuid(cell: Cell<'_>) -> Result<Uuid, &'static str> {
    fixed(cell).map(Uuid::from_bytes)
}

#[cfg(test)]
mod tests;
