//! Decoding of rows of a Debezium outbox. Pure; events borrow the row's bytes where possible.
//!
//! | file | content |
//! |---|---|
//! | `columns` | the outbox's columns among those of a table |
//! | `values` | types and values of columns |
//! | `envelope` | additional columns |

mod columns;
mod envelope;
mod values;

use self::values::{Kind, bytes_of, integer8, jsonb, plain, text, uuid};
use super::native::{Fault, NULL, Row, RowError, TableRow};
use crate::{
    kafka::{Outgoing, Value},
    postgres::replication::{Cell, POSTGRES_EPOCH_MICROS, Tuple},
    relay::options::debezium::{ADDITIONAL_MAX, DebeziumOutbox, OutboxField},
};

/// Number of values of a row: the outbox's own, then the additional ones.
pub(crate) const FOREIGN_CELLS: usize = 32;

/// Places of the values of a row. Additional columns follow.
const SEQ: usize = 0;
const XID: usize = 1;
const FIELDS: usize = 2;
const ADDITIONAL: usize = FOREIGN_CELLS - ADDITIONAL_MAX;

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

/// Buffers for values that cannot be borrowed from the row. One per row.
#[derive(Debug, Default)]
pub(crate) struct RowBuffer {
    key: String,
    headers: String,
    value: String,
}

impl Layout {
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
            committed_at: None,
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

#[cfg(test)]
mod tests;
