//! Conditions of the publication and the replication slot.

use sqlx::PgConnection;

use super::{Conditions, Log, facts::Facts, quoted, server};
use crate::relay::{
    RelayOptions,
    error::Interruption,
    leadership::relay_store::{self, within},
    source::slot,
    startup::{
        names::{LogNames, log_names},
        server::identity,
    },
};

/// Adds the conditions of publication and slot. Nothing is created or dropped.
///
/// # Errors
///
/// Returns an error if the connection is lost.
pub(super) async fn probe(
    facts: &Facts,
    options: &RelayOptions,
    log: Log,
    session: &mut PgConnection,
    conditions: &mut Conditions,
) -> Result<(), Interruption> {
    if log == Log::Unwanted || facts.wal_level != "logical" {
        return Ok(());
    }
    let here = within("identifying the database", identity(session)).await?;
    let known = relay_store::saved(options, session)
        .await?
        .unwrap_or_default()
        .names;
    let names = within(
        "looking for slot and publication",
        log_names(options.subject(), session, &here, &known),
    )
    .await?;
    publication(facts, options, log, &names, session, conditions).await?;
    let slot = slot::look(&names.slot, session).await;
    let exists = matches!(slot, Ok(Some(_)));
    let text = |found: Option<slot::State>| match found {
        None => format!("{} is created when the relay starts", names.slot),
        Some(state) => format!("{}, WAL {}", names.slot, state.wal_status),
    };
    let lost = matches!(&slot, Ok(Some(state)) if !state.usable);
    if conditions.probed("slot", log, slot.map(text))? && lost {
        conditions.0.pop();
        slot_lost(options, log, &names, conditions);
    }
    server::room(facts, log, exists, conditions);
    Ok(())
}

async fn publication(
    facts: &Facts,
    options: &RelayOptions,
    log: Log,
    names: &LogNames,
    session: &mut PgConnection,
    conditions: &mut Conditions,
) -> Result<(), Interruption> {
    let (name, table) = (&names.publication, options.quoted_table());
    let found = slot::fit_publication(options, name, session).await;
    if !matches!(found, Ok(false)) {
        conditions.probed(
            "publication",
            log,
            found.map(|_| format!("{name}, of {table}")),
        )?;
        return Ok(());
    }
    if facts.superuser || (facts.outbox_owned == Some(true) && facts.database_create) {
        conditions.met(
            "publication",
            format!("{name} is created when the relay starts"),
        );
        return Ok(());
    }
    let role = quoted(&facts.role);
    conditions.without_log(
        log,
        "publication",
        format!(
            "permission denied: there is no publication {name}, and role {role} may not create it"
        ),
        format!(
            "as the table's owner, run create publication {name} for table {table} with (publish = \
             'insert'); or make {role} the owner and grant create on database {} to it",
            quoted(&facts.database)
        ),
    );
    Ok(())
}

/// Adds a warning about a lost slot. The relay publishes the missing events from the table, if it
/// can read one.
fn slot_lost(options: &RelayOptions, log: Log, names: &LogNames, conditions: &mut Conditions) {
    let text = format!(
        "{} can no longer be read: the server has removed WAL that the relay had not read",
        names.slot
    );
    let remedy = match (log, &options.debezium) {
        (Log::Needed, Some(_)) => {
            "start the relay: it stops, and its message contains the commands to continue"
        }
        _ => {
            "start the relay: it publishes the missing events from the table, and creates the slot \
             again. Raise max_slot_wal_keep_size"
        }
    };
    conditions.warn("slot", text, remedy);
}
