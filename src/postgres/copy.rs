//! Parser of `COPY … TO STDOUT (FORMAT binary)`. Pure; borrows the bytes.
//!
//! Layout: PostgreSQL manual, "COPY", Binary Format. The header is a signature of 11 bytes, flags
//! and an extension. Each row has a field count, and for each field its length (-1 for null) and
//! its bytes. A field count of -1 ends the data.

use super::replication::Cell;

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// Returns the bytes before the first row.
pub(crate) fn copy_header() -> Vec<u8> {
    [SIGNATURE, &[0; 8]].concat()
}

/// Error of bytes that are not a binary COPY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server's binary copy is truncated or damaged")]
pub(crate) struct CopyError;

/// Iterator over rows of `N` values.
pub(crate) struct CopyRows<'a, const N: usize> {
    rest: &'a [u8],
    ended: bool,
}

impl<'a, const N: usize> CopyRows<'a, N> {
    /// Reads the header. Empty input has no rows.
    ///
    /// # Errors
    ///
    /// Returns [`CopyError`] if the bytes do not start with the header of a binary COPY.
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, CopyError> {
        if bytes.is_empty() {
            return Ok(Self {
                rest: bytes,
                ended: true,
            });
        }
        let rest = bytes.strip_prefix(SIGNATURE).ok_or(CopyError)?;
        let extension = rest
            .get(4..8)
            .map(|len| u32::from_be_bytes([len[0], len[1], len[2], len[3]]))
            .ok_or(CopyError)?;
        let rest = rest.get(8 + extension as usize..).ok_or(CopyError)?;
        Ok(Self { rest, ended: false })
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], CopyError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(CopyError)?;
        self.rest = rest;
        Ok(taken)
    }

    fn row(&mut self) -> Result<Option<[Cell<'a>; N]>, CopyError> {
        if self.rest.is_empty() {
            // The data ends between two rows, because the reader stopped early on purpose.
            return Ok(None);
        }
        let count = i16::from_be_bytes(self.take(2)?.try_into().map_err(|_| CopyError)?);
        if count == -1 {
            return Ok(None);
        }
        if usize::try_from(count) != Ok(N) {
            return Err(CopyError);
        }
        let mut cells = [Cell::Null; N];
        for cell in &mut cells {
            let len = i32::from_be_bytes(self.take(4)?.try_into().map_err(|_| CopyError)?);
            if let Ok(len) = usize::try_from(len) {
                *cell = Cell::Binary(self.take(len)?);
            }
        }
        Ok(Some(cells))
    }
}

impl<'a, const N: usize> Iterator for CopyRows<'a, N> {
    type Item = Result<[Cell<'a>; N], CopyError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let row = self.row().transpose();
        self.ended = !matches!(row, Some(Ok(_)));
        row
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn copy(rows: &[[Option<Vec<u8>>; 2]]) -> Vec<u8> {
        let mut out = SIGNATURE.to_vec();
        out.extend([0; 8]);
        for row in rows {
            out.extend(2i16.to_be_bytes());
            for cell in row {
                out.extend(
                    cell.as_ref()
                        .map_or(-1, |bytes| bytes.len() as i32)
                        .to_be_bytes(),
                );
                out.extend(cell.iter().flatten());
            }
        }
        out.extend((-1i16).to_be_bytes());
        out
    }

    proptest! {
        #[test]
        fn rows_come_back_as_they_were_written(
            rows in proptest::collection::vec(any::<[Option<Vec<u8>>; 2]>(), 0..8),
        ) {
            let bytes = copy(&rows);
            let read: Vec<_> = CopyRows::<2>::new(&bytes)
                .expect("a header")
                .map(|row| row.expect("a row"))
                .collect();
            let expected: Vec<[Cell<'_>; 2]> = rows
                .iter()
                .map(|row| {
                    [&row[0], &row[1]]
                        .map(|cell| cell.as_deref().map_or(Cell::Null, Cell::Binary))
                })
                .collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), header: bool) {
            let bytes = if header { [copy(&[]), bytes].concat() } else { bytes };
            if let Ok(rows) = CopyRows::<2>::new(&bytes) {
                assert!(rows.count() <= bytes.len() + 1);
            }
        }
    }

    #[test]
    fn a_copy_cut_within_a_row_is_an_error_and_not_a_short_row() {
        let bytes = copy(&[[Some(vec![1, 2, 3]), None]]);
        let short = &bytes[..SIGNATURE.len() + 8 + 5];
        assert_eq!(
            CopyRows::<2>::new(short).expect("a header").next(),
            Some(Err(CopyError))
        );
    }
}
