//! Decoder of `pgoutput` (protocol version 1, text or binary tuples). Pure; borrows the bytes.
//!
//! Layout: PostgreSQL manual, "Logical Replication Message Formats". Every read is bounds-checked,
//! so no input can panic. A message that does not fit its own lengths is an error that names the
//! field.

use crate::postgres::Lsn;

/// A message of the stream. Messages that the relay does not need are recognized but not decoded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// A transaction starts. The server sends it as a whole after its commit.
    Begin {
        /// Position of the commit record, which identifies the transaction in the stream.
        commit_lsn: Lsn,
        /// Commit time in microseconds since 2000-01-01 UTC, by the server's clock.
        committed_at: i64,
        /// Transaction id without its epoch.
        xid: u32,
    },
    /// The transaction is complete.
    Commit {
        /// Position after the commit record. It may be confirmed once everything before it is safe.
        end_lsn: Lsn,
    },
    /// The layout of a table, sent before its first row and after each change.
    Relation(Relation),
    /// One inserted row.
    Insert {
        /// Id of the table, from its last `Relation`.
        relation: u32,
        /// The new row.
        row: Tuple<'a>,
    },
    /// The outbox was truncated, so events may be lost.
    Truncate,
    /// Updates, deletes, types, origins and logical messages, which the relay does not need.
    Other(u8),
}

/// Name and columns of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relation {
    pub(crate) id: u32,
    pub(crate) schema: String,
    pub(crate) table: String,
    pub(crate) columns: Vec<Column>,
}

/// One column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) type_oid: u32,
}

/// One value of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cell<'a> {
    /// SQL null.
    Null,
    /// A value that the stream omits because an update did not change it. Never in an insert.
    Unchanged,
    /// The text format of the type.
    Text(&'a [u8]),
    /// The binary format of the type.
    Binary(&'a [u8]),
}

/// The values of one row, decoded as they are iterated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tuple<'a> {
    cells: u16,
    bytes: &'a [u8],
}

/// Error of a message that violates its own format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed pgoutput message `{}`: {what}", char::from(*tag))]
pub(crate) struct DecodeError {
    tag: u8,
    what: &'static str,
}

/// Decodes one message.
///
/// # Errors
///
/// Returns [`DecodeError`] if the bytes end before the message does, or a tag or string violates
/// the protocol.
pub(crate) fn decode(message: &[u8]) -> Result<Message<'_>, DecodeError> {
    let (&tag, rest) = message.split_first().ok_or(DecodeError {
        tag: b'?',
        what: "empty message",
    })?;
    let mut read = Reader { tag, rest };
    match tag {
        b'B' => {
            let (commit_lsn, committed_at, xid) = (
                Lsn(read.u64("commit lsn")?),
                read.i64("commit time")?,
                read.u32("xid")?,
            );
            Ok(Message::Begin {
                commit_lsn,
                committed_at,
                xid,
            })
        }
        b'C' => {
            let (_flags, _commit, end) = (
                read.u8("flags")?,
                read.u64("commit lsn")?,
                read.u64("end lsn")?,
            );
            Ok(Message::Commit { end_lsn: Lsn(end) })
        }
        b'R' => read.relation().map(Message::Relation),
        b'I' => {
            let relation = read.u32("relation id")?;
            if read.u8("tuple kind")? != b'N' {
                return Err(read.error("an insert without a new row"));
            }
            Ok(Message::Insert {
                relation,
                row: Tuple {
                    cells: read.u16("column count")?,
                    bytes: read.rest,
                },
            })
        }
        b'T' => Ok(Message::Truncate),
        other => Ok(Message::Other(other)),
    }
}

impl<'a> Tuple<'a> {
    /// Returns the values in column order. Ends after the first malformed one.
    pub(crate) fn cells(&self) -> impl Iterator<Item = Result<Cell<'a>, DecodeError>> + use<'a> {
        let mut read = Reader {
            tag: b'I',
            rest: self.bytes,
        };
        let mut left = self.cells;
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let cell = read.cell();
            if cell.is_err() {
                left = 0;
            }
            Some(cell)
        })
    }
}

struct Reader<'a> {
    tag: u8,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn error(&self, what: &'static str) -> DecodeError {
        DecodeError {
            tag: self.tag,
            what,
        }
    }

    fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(self.error(what))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(self.error(what))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        self.array(what).map(u16::from_be_bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_be_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.array(what).map(u64::from_be_bytes)
    }

    fn i64(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        self.array(what).map(i64::from_be_bytes)
    }

    fn string(&mut self, what: &'static str) -> Result<String, DecodeError> {
        let end = self
            .rest
            .iter()
            .position(|&byte| byte == 0)
            .ok_or(self.error(what))?;
        let text = std::str::from_utf8(self.take(end, what)?).map_err(|_| self.error(what))?;
        self.take(1, what)?;
        Ok(text.to_owned())
    }

    fn relation(&mut self) -> Result<Relation, DecodeError> {
        let id = self.u32("relation id")?;
        let schema = self.string("schema name")?;
        let table = self.string("table name")?;
        self.u8("replica identity")?;
        let count = self.u16("column count")?;
        let columns = (0..count)
            .map(|_| self.column())
            .collect::<Result<_, _>>()?;
        Ok(Relation {
            id,
            schema,
            table,
            columns,
        })
    }

    fn column(&mut self) -> Result<Column, DecodeError> {
        self.u8("column flags")?;
        let name = self.string("column name")?;
        let type_oid = self.u32("column type")?;
        self.u32("type modifier")?;
        Ok(Column { name, type_oid })
    }

    fn cell(&mut self) -> Result<Cell<'a>, DecodeError> {
        match self.u8("value kind")? {
            b'n' => Ok(Cell::Null),
            b'u' => Ok(Cell::Unchanged),
            b't' => self.value().map(Cell::Text),
            b'b' => self.value().map(Cell::Binary),
            _ => Err(self.error("unknown value kind")),
        }
    }

    fn value(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u32("value length")?;
        self.take(len as usize, "value bytes")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn insert(cells: &[Cell<'_>]) -> Vec<u8> {
        let mut out = vec![b'I', 0, 0, 0, 7, b'N'];
        out.extend((cells.len() as u16).to_be_bytes());
        for cell in cells {
            let (kind, bytes) = match *cell {
                Cell::Null => (b'n', None),
                Cell::Unchanged => (b'u', None),
                Cell::Text(bytes) => (b't', Some(bytes)),
                Cell::Binary(bytes) => (b'b', Some(bytes)),
            };
            out.push(kind);
            if let Some(bytes) = bytes {
                out.extend((bytes.len() as u32).to_be_bytes());
                out.extend(bytes);
            }
        }
        out
    }

    #[test]
    fn a_relation_names_its_columns_in_order() {
        let mut bytes = vec![b'R', 0, 0, 0, 9];
        bytes.extend(b"tidings\0outbox\0d");
        bytes.extend([0, 2]);
        for (name, oid) in [("seq", 20u32), ("payload", 114)] {
            bytes.push(0);
            bytes.extend(name.as_bytes());
            bytes.push(0);
            bytes.extend(oid.to_be_bytes());
            bytes.extend((-1i32).to_be_bytes());
        }
        let Ok(Message::Relation(relation)) = decode(&bytes) else {
            panic!("a relation")
        };
        assert_eq!(
            (
                relation.id,
                relation.schema.as_str(),
                relation.table.as_str()
            ),
            (9, "tidings", "outbox")
        );
        assert_eq!(
            relation.columns[1],
            Column {
                name: "payload".into(),
                type_oid: 114
            }
        );
    }

    #[test]
    fn an_insert_cut_anywhere_is_an_error_and_not_a_short_row() {
        let whole = insert(&[Cell::Binary(b"12345678"), Cell::Null, Cell::Text(b"order")]);
        for end in 0..whole.len() {
            let complete = match decode(&whole[..end]) {
                Ok(Message::Insert { row, .. }) => row.cells().all(|cell| cell.is_ok()),
                Ok(_) => true,
                Err(_) => false,
            };
            assert!(!complete, "cut at {end}");
        }
    }

    fn a_cell() -> impl Strategy<Value = (u8, Vec<u8>)> {
        (0u8..4, proptest::collection::vec(any::<u8>(), 0..40))
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Message::Insert { row, .. }) = decode(&bytes) {
                let _ = row.cells().count();
            }
        }

        #[test]
        fn a_row_comes_back_as_it_was_written(cells in proptest::collection::vec(a_cell(), 0..20)) {
            let cells: Vec<Cell<'_>> = cells.iter().map(|(kind, bytes)| match kind {
                0 => Cell::Null,
                1 => Cell::Unchanged,
                2 => Cell::Text(bytes),
                _ => Cell::Binary(bytes),
            }).collect();
            let bytes = insert(&cells);
            let Ok(Message::Insert { relation: 7, row }) = decode(&bytes) else {
                panic!("an insert")
            };
            let read = row.cells().collect::<Result<Vec<_>, _>>();
            prop_assert_eq!(read.expect("well-formed"), cells);
        }
    }
}
