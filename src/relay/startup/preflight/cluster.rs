//! Conditions of the positions in Kafka. The start examines them in the same way, after it has
//! fenced earlier producers.

use sqlx::PgConnection;

use super::{Conditions, Log};
use crate::relay::{
    DeliveryGuarantee, RelayOptions,
    error::Interruption,
    leadership::relay_store,
    startup::{recovery, server},
};

/// Adds the conditions of the positions in Kafka.
///
/// # Errors
///
/// Returns an error if a broker or the database does not answer.
pub(super) async fn probe(
    options: &RelayOptions,
    session: &mut PgConnection,
    conditions: &mut Conditions,
) -> Result<(), Interruption> {
    let name = "positions";
    if options.delivery == DeliveryGuarantee::AtLeastOnce {
        conditions.met(name, "stored in the database: delivery is at least once");
        return Ok(());
    }
    let Some(saved) = relay_store::saved(options, session).await? else {
        conditions.met(name, "none yet");
        return Ok(());
    };
    if saved.moved_to.is_some() || saved.adopts.is_some() {
        conditions.met(
            name,
            "moved by a command: the relay's next start applies the move",
        );
        return Ok(());
    }
    let here = server::examine(session).await?;
    let found = recovery::preview(options, session, &here, saved).await;
    conditions.probed(name, Log::Wanted, found)?;
    Ok(())
}
