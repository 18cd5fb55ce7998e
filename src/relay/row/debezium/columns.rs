//! The outbox's columns among the columns of a table.

use super::{ADDITIONAL, FIELDS, FOREIGN_CELLS, Layout, SEQ, XID, values::Kind};
use crate::{
    postgres::replication::Column,
    relay::{
        options::debezium::{DebeziumOutbox, OutboxField},
        row::native::RowError,
    },
};

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
}

/// Returns `true` if a table without the field cannot be read.
fn is_needed(outbox: &DebeziumOutbox, field: OutboxField) -> bool {
    field != OutboxField::Type
        || outbox
            .columns
            .iter()
            .any(|(named, _)| *named == OutboxField::Type)
}
