//! Privileges in Postgres.

use serde::Serialize;

use super::{Duty, Place, RelayDuty};
use crate::outbox::COLUMNS;

/// Privileges on one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct SqlGrant {
    /// Each privilege as SQL writes it, for example `select` or `insert (id, type)`.
    pub(crate) privileges: Vec<String>,
    /// The object as SQL writes it, for example `schema tidings`.
    pub(crate) object: String,
    /// The role, quoted.
    pub(crate) to: String,
    /// Purpose, where the object's name does not show it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) purpose: Option<&'static str>,
}

impl SqlGrant {
    /// Returns the statement without its semicolon.
    pub(crate) fn statement(&self) -> String {
        let Self {
            privileges,
            object,
            to,
            ..
        } = self;
        format!("grant {} on {object} to {to}", privileges.join(", "))
    }
}

/// Returns a quoted identifier.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Returns the statement that creates the role, unless it exists.
pub(super) fn create_role(role: &str, duty: &Duty) -> String {
    let attribute = match duty {
        Duty::Relay(relay) if relay.streams => " replication",
        _ => "",
    };
    format!(
        "do $$ begin\n    if not exists (select from pg_roles where rolname = '{}') then\n        \
         create role {} login{attribute};\n    end if;\nend $$",
        role.replace('\'', "''"),
        identifier(role)
    )
}

/// Returns the statements that create objects for the role.
pub(super) fn objects(place: &Place, duty: &Duty) -> Vec<String> {
    let Duty::Relay(relay) = duty else {
        return Vec::new();
    };
    if !relay.streams {
        return Vec::new();
    }
    let publication = &relay.publication;
    vec![format!(
        "do $$ begin\n    if not exists (select from pg_publication where pubname = '{}') then\n        \
         create publication {}\n            for table {} with (publish = 'insert');\n    \
         end if;\nend $$",
        publication.replace('\'', "''"),
        identifier(publication),
        table_of(place, relay)
    )]
}

/// Returns the table that a relay reads.
fn table_of(place: &Place, relay: &RelayDuty) -> String {
    match &relay.debezium {
        Some((schema, table)) => format!("{}.{}", identifier(schema), identifier(table)),
        None => format!("{}.outbox", place.schema),
    }
}

/// Returns the privileges of a role.
pub(super) fn grants(role: &str, place: &Place, duty: &Duty) -> Vec<SqlGrant> {
    let mut list = List {
        to: identifier(role),
        schema: place.schema.clone(),
        grants: Vec::new(),
    };
    let database = format!("database {}", identifier(&place.database));
    if matches!(duty, Duty::Migrator) {
        list.on(&["connect", "create"], database);
        return list.grants;
    }
    list.on(&["connect"], database);
    list.on(&["usage"], format!("schema {}", place.schema));
    match duty {
        Duty::Migrator => {}
        Duty::Publisher {
            schedules,
            migrates,
        } => list.publisher(*schedules, *migrates),
        Duty::Relay(relay) => list.relay(place, relay),
        Duty::Subscriber {
            has_inbox,
            has_sagas,
            ..
        } => list.subscriber(*has_inbox, *has_sagas),
        Duty::Operator { .. } => list.operator(),
    }
    list.grants
}

/// Privileges of one role, in the order in which they are printed.
struct List {
    to: String,
    schema: String,
    grants: Vec<SqlGrant>,
}

impl List {
    fn on(&mut self, privileges: &[&str], object: String) {
        self.grants.push(SqlGrant {
            privileges: privileges.iter().map(|&word| word.to_owned()).collect(),
            object,
            to: self.to.clone(),
            purpose: None,
        });
    }

    /// Adds privileges on a table of Tidings.
    fn table(&mut self, privileges: &[&str], table: &str) {
        self.on(privileges, format!("{}.{table}", self.schema));
    }

    /// States the purpose of the last grant.
    fn purpose(&mut self, purpose: &'static str) {
        if let Some(last) = self.grants.last_mut() {
            last.purpose = Some(purpose);
        }
    }

    fn insert_into_outbox(&mut self) {
        self.table(&[&format!("insert ({COLUMNS})")], "outbox");
    }

    fn publisher(&mut self, schedules: bool, migrates: bool) {
        self.insert_into_outbox();
        if schedules {
            self.table(&[&format!("insert ({COLUMNS}, due_at)")], "scheduled");
            self.table(&["select (id)", "delete"], "scheduled");
            self.purpose("cancels scheduled events");
        }
        if migrates {
            self.table(&["select"], "_tidings_migrations");
            self.purpose("finds that the tables are up to date");
        }
    }

    fn relay(&mut self, place: &Place, relay: &RelayDuty) {
        if let Some((schema, _)) = &relay.debezium {
            if schema != &place.schema {
                self.on(&["usage"], format!("schema {}", identifier(schema)));
            }
            self.on(&["select"], table_of(place, relay));
        } else if relay.has_retention {
            self.table(&["select", "delete"], "outbox");
            self.purpose("delete: retention");
        } else {
            self.table(&["select"], "outbox");
        }
        for table in ["relay", "relay_topic", "relay_secret"] {
            self.table(&["select", "insert", "update"], table);
        }
        if relay.debezium.is_some() {
            return;
        }
        self.table(&["select", "insert", "update", "delete"], "parked");
        self.table(&["select", "update"], "retention");
        self.table(&["select", "update", "delete"], "scheduled");
        self.purpose("moves scheduled events to the outbox when they are due");
        self.insert_into_outbox();
        self.purpose("scheduled events");
    }

    fn subscriber(&mut self, has_inbox: bool, has_sagas: bool) {
        if !has_inbox {
            // Nothing is stored in the database: connect and usage are not needed either.
            self.grants.clear();
            return;
        }
        let all = ["select", "insert", "update", "delete"];
        self.table(&all, "inbox");
        self.table(&["select", "insert", "delete"], "inbox_collision");
        self.table(&all, "subscriber_parked");
        self.table(&all, "subscriber");
        self.table(&["select"], "subscriber_control");
        if has_sagas {
            self.table(&all, "saga");
            self.table(&["select", "insert", "delete"], "saga_lock");
            self.table(&all, "saga_code");
            self.insert_into_outbox();
            self.purpose("commands and outcomes of sagas");
        }
    }

    fn operator(&mut self) {
        for table in ["outbox", "scheduled", "relay", "relay_topic", "retention"] {
            self.table(&["select"], table);
        }
        self.table(&["select"], "relay_decision");
        self.purpose("decisions that `tidings verify` takes into account");
        self.table(&["select", "update (action)"], "parked");
        self.table(&["select"], "inbox");
        self.table(&["select"], "subscriber");
        self.table(&["select", "insert", "delete"], "subscriber_control");
        self.table(
            &["select", "update (action, decided_by)"],
            "subscriber_parked",
        );
        self.table(&["select", "update (action, due_at)"], "saga");
        self.table(&["select"], "saga_lock");
        self.table(&["select", "delete"], "saga_code");
        self.purpose("delete: `tidings sagas disown`");
    }
}
