//! Conditions of the stored position: it belongs to this database, and the outbox contains the
//! events that it needs.

use sqlx::PgConnection;

use super::{Conditions, Log};
use crate::relay::{
    RelayOptions,
    error::Interruption,
    leadership::relay_store::{self, Saved},
    startup::{continuity, recovery, server},
};

/// Adds the conditions of the position in the database. The relay's start examines the position in
/// Kafka in the same way.
///
/// # Errors
///
/// Returns an error if the connection is lost.
pub(super) async fn probe(
    options: &RelayOptions,
    session: &mut PgConnection,
    conditions: &mut Conditions,
) -> Result<(), Interruption> {
    let Some(saved) = relay_store::saved(options, session).await? else {
        conditions.met(
            "position",
            "none: the relay starts with the events in the outbox",
        );
        return Ok(());
    };
    let found = examine(options, session, &saved).await;
    conditions.probed("position", Log::Wanted, found)?;
    Ok(())
}

async fn examine(
    options: &RelayOptions,
    session: &mut PgConnection,
    saved: &Saved,
) -> Result<String, Interruption> {
    if saved.moved_to.is_some() || saved.adopts.is_some() {
        return Ok("moved by a command: the relay's next start applies the move".into());
    }
    let here = server::examine(session).await?;
    continuity::require_same_database(options, session, &here, saved).await?;
    if let (Some(identity), Some(position)) = (&saved.identity, &saved.position) {
        let kept = continuity::require_kept_commits(
            options,
            session,
            &here,
            identity,
            position.clone(),
            Some(position),
        );
        kept.await?;
        let schema = format!("\"{}\"", options.schema);
        let floor = if options.debezium.is_none() {
            relay_store::floor(session, &schema, "").await?
        } else {
            0
        };
        recovery::require_kept(options, position, floor)?;
    }
    Ok("belongs to this database".into())
}
