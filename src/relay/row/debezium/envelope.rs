//! Additional columns of a Debezium table, as headers and as members of the envelope.

use super::{
    ADDITIONAL, FIELDS, Layout,
    values::{Kind, bytes_of, plain, quote},
};
use crate::{
    postgres::replication::Cell,
    relay::{
        options::debezium::{OutboxField, Placement},
        row::native::RowError,
    },
};

impl Layout {
    /// Writes the additional headers as a JSON object, in the configured order.
    pub(super) fn write_headers(
        &self,
        cells: &[Cell<'_>],
        out: &mut String,
    ) -> Result<(), RowError> {
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
    pub(super) fn write_envelope(
        &self,
        cells: &[Cell<'_>],
        out: &mut String,
    ) -> Result<bool, RowError> {
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
}
