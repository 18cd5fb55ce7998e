//! The relay's spans without OpenTelemetry: none.

use crate::relay::row::native::Row;

pub(super) struct SendSpans;

impl SendSpans {
    pub(super) fn new(_: bool) -> Self {
        Self
    }

    pub(super) fn sent(&self, _: &Row<'_>, _: &str, _: i32) {}
}
