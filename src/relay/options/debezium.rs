//! Options for an outbox table that was made for Debezium's EventRouter.
//!
//! Such a table has neither `seq` nor `xid`. So the table shows neither the order in which its rows were written nor which of
//! them a snapshot covers, and the relay reads it from the log alone (`source/log_only.rs`). Events that the log no longer
//! holds cannot be published: the relay stops and reports it. Once an operator has added both columns, the relay reads the
//! table like its own (`row/table_layout.rs`).

use crate::relay::{row::debezium::FOREIGN_CELLS, source::connector_handover::Offset};

/// A Debezium outbox table, and how its rows are read. The names in brackets are EventRouter's own options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebeziumOutbox {
    /// The table's schema, as Postgres has it: case counts.
    pub schema: String,
    /// The table's name.
    pub table: String,
    /// Columns that have other names than Debezium's defaults (`table.field.event.*`, `route.by.field`).
    pub columns: Vec<(OutboxField, String)>,
    /// Columns that are sent too (`table.fields.additional.placement`).
    pub additional: Vec<AdditionalColumn>,
    /// In an envelope, a JSON payload is JSON and not a string with JSON in it (`table.expand.json.payload`). Without additional columns in
    /// the envelope a JSON payload is the record's value as it is, either way.
    pub expand_json: bool,
    /// Whether rows stay.
    pub rows: OutboxRows,
    /// What becomes of the rows that are there when the relay begins.
    pub existing: ExistingRows,
    /// The publication to read by; the relay's own unless given.
    pub publication: Option<String>,
    /// The connector whose place the relay takes when it begins.
    pub hand_over: Option<HandOver>,
}

/// What a column of the outbox is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum OutboxField {
    /// The event's id, a uuid (`table.field.event.id`).
    Id,
    /// What the topic is made of (`route.by.field`).
    AggregateType,
    /// The record's key (`table.field.event.key`).
    AggregateId,
    /// The event's name. Debezium sends it only if told to.
    Type,
    /// The record's value (`table.field.event.payload`).
    Payload,
    /// The record's timestamp (`table.field.event.timestamp`). Without it: when the transaction committed.
    OccurredAt,
}

/// A column that is sent beside the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdditionalColumn {
    /// Its name in the table.
    pub column: String,
    /// Where it goes.
    pub placement: Placement,
    /// Its name there.
    pub alias: String,
}

/// Where an additional column goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Placement {
    /// A header of the record.
    Header,
    /// A member of the value, beside `payload`.
    Envelope,
}

/// Whether rows stay in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutboxRows {
    /// They stay until somebody cleans up what is published.
    Kept,
    /// They are deleted by whoever inserted them, before the relay may have seen them: only the log has them all.
    Deleted,
}

/// What becomes of the rows that are there when the relay begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExistingRows {
    /// They are published first (`snapshot.mode=initial`).
    Publish,
    /// They are left (`snapshot.mode=no_data`, earlier called `never`).
    Leave,
}

/// A connector that was stopped, and how far it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// Its slot (`slot.name`).
    pub slot: String,
    /// Its stored offset. Without it the relay goes on from what the slot has confirmed, and repeats what came after that.
    pub offset: Option<Offset>,
}

/// Most additional columns.
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

    /// The column that serves as `field`; none if the field is optional and no column was named.
    pub(crate) fn column(&self, field: OutboxField) -> Option<&str> {
        let named = self
            .columns
            .iter()
            .find(|(named, _)| *named == field)
            .map(|(_, column)| column.as_str());
        named.or(match field {
            // Debezium has no default either: a column of this name may be anything.
            OutboxField::OccurredAt => None,
            other => Some(other.name()),
        })
    }
}

impl OutboxField {
    /// Every field.
    pub(crate) const ALL: [Self; 6] = [
        Self::Id,
        Self::AggregateType,
        Self::AggregateId,
        Self::Type,
        Self::Payload,
        Self::OccurredAt,
    ];

    /// Its name: that of Debezium's default column.
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
