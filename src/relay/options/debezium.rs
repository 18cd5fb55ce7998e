//! Options for an outbox table that was made for Debezium's EventRouter.
//!
//! Such a table has neither `seq` nor `xid`. It therefore shows neither the order in which its rows
//! were written nor the rows that a snapshot covers, and the relay reads it only from the log
//! (`source/log_only.rs`). Events that the log no longer contains cannot be published: the relay
//! stops and reports this. Once an operator has added both columns, the relay can read the table
//! like its own (`row/table_layout.rs`).

use crate::relay::{row::debezium::FOREIGN_CELLS, source::connector_handover::Offset};

/// A Debezium outbox table and the use of its columns. The names in brackets are EventRouter's own
/// options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebeziumOutbox {
    /// The table's schema, as Postgres stores it. Case-sensitive.
    pub schema: String,
    /// The table's name.
    pub table: String,
    /// Columns with other names than Debezium's defaults (`table.field.event.*`, `route.by.field`).
    pub columns: Vec<(OutboxField, String)>,
    /// Additional columns to send (`table.fields.additional.placement`).
    pub additional: Vec<AdditionalColumn>,
    /// Sends a JSON payload in an envelope as JSON rather than as a string that contains JSON
    /// (`table.expand.json.payload`). Without additional columns in the envelope, a JSON payload is
    /// always the unchanged value of the record.
    pub expand_json: bool,
    /// Lifetime of rows in the table.
    pub rows: OutboxRows,
    /// Treatment of the rows that exist at the relay's first start.
    pub existing: ExistingRows,
    /// Name of the publication to read. Defaults to the relay's own.
    pub publication: Option<String>,
    /// The connector that the relay replaces at its first start.
    pub hand_over: Option<HandOver>,
}

/// Use of a column of the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum OutboxField {
    /// The event's id, a uuid (`table.field.event.id`).
    Id,
    /// The value that the topic is derived from (`route.by.field`).
    AggregateType,
    /// The record's key (`table.field.event.key`).
    AggregateId,
    /// The event's name. Debezium sends it only if configured to.
    Type,
    /// The record's value (`table.field.event.payload`).
    Payload,
    /// The record's timestamp (`table.field.event.timestamp`). Defaults to the commit time of the
    /// transaction.
    OccurredAt,
}

/// A column that is sent in addition to the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdditionalColumn {
    /// Its name in the table.
    pub column: String,
    /// Its place in the record.
    pub placement: Placement,
    /// Its name in the record.
    pub alias: String,
}

/// Place of an additional column in the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Placement {
    /// A header of the record.
    Header,
    /// A member of the value, next to `payload`.
    Envelope,
}

/// Lifetime of rows in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutboxRows {
    /// Rows stay until a clean-up of published rows deletes them.
    Kept,
    /// Publishers delete the rows that they insert, possibly before the relay has read them. Only
    /// the log contains all of them.
    Deleted,
}

/// Treatment of the rows that exist at the relay's first start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExistingRows {
    /// Existing rows are published first (`snapshot.mode=initial`).
    Publish,
    /// Existing rows are left out (`snapshot.mode=no_data`, earlier called `never`).
    Leave,
}

/// A stopped connector and its progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// Its slot (`slot.name`).
    pub slot: String,
    /// Its stored offset. Without it, the relay continues from the slot's confirmed position, and
    /// repeats the events that the connector published after it.
    pub offset: Option<Offset>,
}

/// Maximum number of additional columns.
pub(crate) const ADDITIONAL_MAX: usize = FOREIGN_CELLS - 12;

impl DebeziumOutbox {
    /// The table with Debezium's default columns.
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> Self {
        Self {
            schema: schema.into(),
            table: table.into(),
            columns: Vec::new(),
            additional: Vec::new(),
            expand_json: false,
            rows: OutboxRows::Kept,
            existing: ExistingRows::Publish,
            publication: None,
            hand_over: None,
        }
    }

    /// Returns the column for `field`. Returns `None` if the field is optional and no column was
    /// named.
    pub(crate) fn column(&self, field: OutboxField) -> Option<&str> {
        let named = self
            .columns
            .iter()
            .find(|(named, _)| *named == field)
            .map(|(_, column)| column.as_str());
        named.or(match field {
            // Debezium has no default either: a column with this name may have any meaning.
            OutboxField::OccurredAt => None,
            other => Some(other.name()),
        })
    }
}

impl OutboxField {
    /// All fields.
    pub(crate) const ALL: [Self; 6] = [
        Self::Id,
        Self::AggregateType,
        Self::AggregateId,
        Self::Type,
        Self::Payload,
        Self::OccurredAt,
    ];

    /// Returns the field's name, which is also the name of Debezium's default column.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::AggregateType => "aggregatetype",
            Self::AggregateId => "aggregateid",
            Self::Type => "type",
            Self::Payload => "payload",
            Self::OccurredAt => "timestamp",
        }
    }
}
