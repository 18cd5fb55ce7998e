//! Types and values of a Debezium table's columns.

use std::fmt::Write as _;

use uuid::Uuid;

use crate::{postgres::replication::Cell, relay::row::native::NULL};

const LENGTH: &str = "not of its type's length";

const UTF8: &str = "not UTF-8";

/// Type of a column's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
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

impl Kind {
    /// Returns the kind of a type by its oid (`pg_type.dat`: the oids of built-in types never
    /// change).
    pub(super) fn of(type_oid: u32) -> Self {
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
    pub(super) fn is_plain(self) -> bool {
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

/// Writes the text of a value: text unchanged, other types as Java writes them.
pub(super) fn plain(
    kind: Option<Kind>,
    cell: Cell<'_>,
    out: &mut String,
) -> Result<(), &'static str> {
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
pub(super) fn quote(text: &str, out: &mut String) {
    out.push_str(&serde_json::to_string(text).expect("a string is JSON"));
}

pub(super) fn bytes_of(cell: Cell<'_>) -> Result<&[u8], &'static str> {
    match cell {
        Cell::Null | Cell::Unchanged => Err(NULL),
        Cell::Text(bytes) | Cell::Binary(bytes) => Ok(bytes),
    }
}

pub(super) fn text(cell: Cell<'_>) -> Result<&str, &'static str> {
    std::str::from_utf8(bytes_of(cell)?).map_err(|_| UTF8)
}

pub(super) fn jsonb(cell: Cell<'_>) -> Result<&str, &'static str> {
    // The binary form starts with a version byte, which is 1.
    Ok(text(cell)?.trim_start_matches('\u{1}'))
}

pub(super) fn fixed<const N: usize>(cell: Cell<'_>) -> Result<[u8; N], &'static str> {
    bytes_of(cell)?.try_into().map_err(|_| LENGTH)
}

pub(super) fn integer8(cell: Cell<'_>) -> Result<i64, &'static str> {
    fixed(cell).map(i64::from_be_bytes)
}

pub(super) fn uuid(cell: Cell<'_>) -> Result<Uuid, &'static str> {
    fixed(cell).map(Uuid::from_bytes)
}
