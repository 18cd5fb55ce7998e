//! Conditions of the relay's tables: their existence, and the role's rights on them.

use super::{Conditions, facts::Facts, quoted};
use crate::{outbox::COLUMNS, relay::RelayOptions};

/// Adds the conditions of tables and rights.
pub(super) fn judge(facts: &Facts, options: &RelayOptions, conditions: &mut Conditions) {
    let (schema, (_, table)) = (&options.schema, options.table());
    let is_own = options.debezium.is_none();
    // The columns of a Debezium table are examined in `row/table_layout.rs`.
    if !facts.outbox_exists && is_own {
        let text = format!(
            "there is no table {} in database {}",
            options.quoted_table(),
            facts.database
        );
        return conditions.refuse(
            "tables",
            text,
            "run `tidings migrate` for this database and schema",
        );
    }
    let missing = missing_rights(facts, options);
    if !exist(facts, is_own) {
        let names = if is_own {
            "relay, relay_topic, relay_secret, parked, retention and scheduled"
        } else {
            "relay, relay_topic and relay_secret"
        };
        let text = format!(
            "one of the tables {names} is missing in schema {schema}, or belongs to an earlier \
             version"
        );
        conditions.refuse(
            "tables",
            text,
            "run `tidings migrate` for this database and schema",
        );
    } else if !missing.is_empty() {
        let text = format!(
            "permission denied: role {} lacks rights (`tidings check` lists them)",
            quoted(&facts.role)
        );
        conditions.refuse("tables", text, missing.join("; "));
    } else {
        conditions.met(
            "tables",
            format!("{table}, and the relay's own tables in schema {schema}"),
        );
    }
    if is_own
        && options.retention.enabled
        && facts.outbox_exists
        && facts.outbox_delete == Some(false)
    {
        let remedy = format!(
            "grant delete on {} to {}; or set [retention] enabled = false",
            options.quoted_table(),
            quoted(&facts.role)
        );
        conditions.warn(
            "retention",
            "published events cannot be deleted from the outbox",
            remedy,
        );
    }
}

fn exist(facts: &Facts, is_own: bool) -> bool {
    let own = [
        facts.parked_write,
        facts.retention_write,
        facts.scheduled_write,
    ];
    let both = [
        facts.relay_write,
        facts.relay_topic_write,
        facts.relay_secret_write,
    ];
    facts.relay_is_current
        && both
            .iter()
            .chain(own.iter().filter(|_| is_own))
            .all(Option::is_some)
}

/// Returns the statements that grant the missing rights.
fn missing_rights(facts: &Facts, options: &RelayOptions) -> Vec<String> {
    let (role, table, schema) = (
        quoted(&facts.role),
        options.quoted_table(),
        quoted(&options.schema),
    );
    let is_own = options.debezium.is_none();
    let mut missing = Vec::new();
    let mut needs = |right: Option<bool>, statement: String| {
        if right == Some(false) {
            missing.push(statement);
        }
    };
    needs(
        facts.schema_usage,
        format!("grant usage on schema {schema} to {role}"),
    );
    if !is_own {
        needs(
            facts.outbox_schema_usage,
            format!(
                "grant usage on schema {} to {role}",
                quoted(options.table().0)
            ),
        );
    }
    needs(
        facts.outbox_select,
        format!("grant select on {table} to {role}"),
    );
    needs(
        facts.relay_write,
        format!("grant select, insert, update on {schema}.relay to {role}"),
    );
    needs(
        facts.relay_topic_write,
        format!("grant select, insert, update on {schema}.relay_topic to {role}"),
    );
    needs(
        facts.relay_secret_write,
        format!("grant select, insert, update on {schema}.relay_secret to {role}"),
    );
    // Events of a Debezium table are neither parked, deleted nor scheduled.
    if is_own {
        needs(
            facts.parked_write,
            format!("grant select, insert, update, delete on {schema}.parked to {role}"),
        );
        needs(
            facts.retention_write,
            format!("grant select, update on {schema}.retention to {role}"),
        );
        needs(
            facts.scheduled_write,
            format!("grant select, update, delete on {schema}.scheduled to {role}"),
        );
        needs(
            facts.outbox_insert,
            format!("grant insert ({COLUMNS}) on {table} to {role}"),
        );
    }
    missing
}
