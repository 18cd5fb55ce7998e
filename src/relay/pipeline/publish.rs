//! Forwards a row, waiting for whatever holds it.

use tokio_util::sync::CancellationToken;

use super::{
    checkpoint::Books,
    publisher::{Forwarded, Forwarder, Hold},
};
use crate::relay::{error::Interruption, row::native::Row, source::parked::release};

/// What became of the row; `None` if `shutdown` came first.
///
/// # Errors
/// Whatever interrupts the session.
pub(crate) async fn publish(
    row: &Row<'_>,
    forwarder: &mut Forwarder,
    books: &mut Books,
    shutdown: &CancellationToken,
) -> Result<Option<Forwarded>, Interruption> {
    let mut full = None;
    loop {
        let hold = match forwarder.forward(row)? {
            Ok(forwarded) => return Ok(Some(forwarded)),
            Err(hold) => hold,
        };
        // What is decided, and what can be released, makes room.
        let releases = if let Hold::ParkedFull(limit) = hold {
            full.get_or_insert_with(|| forwarder.parked_is_full(limit));
            true
        } else {
            false
        };
        if !books.attend(forwarder, hold, shutdown).await?
            || (releases && !release(forwarder, books, shutdown).await?)
        {
            return Ok(None);
        }
    }
}
