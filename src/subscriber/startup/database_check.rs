//! Checks of the inbox's database before a subscriber joins its group: tables, columns, rights and
//! writability.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    postgres::errors::with_causes,
    subscriber::{
        inbox::OpenInbox,
        run::{Plan, RunError, pause},
        telemetry::log_limit::LogLimit,
    },
};

/// Time limit for a response of the database.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The tables that a subscriber uses, each with the required rights and the most recently added
/// column.
const TABLES: [(&str, &str, &str); 5] = [
    ("inbox", "select,insert,update,delete", "fingerprint"),
    ("inbox_collision", "select,insert,delete", "fingerprint"),
    (
        "subscriber_parked",
        "select,insert,update,delete",
        "decided_by",
    ),
    ("subscriber", "select,insert,update,delete", "paused_since"),
    ("subscriber_control", "select", "paused_since"),
];

/// State of one table.
#[derive(Clone, Debug)]
struct Found {
    table: String,
    exists: bool,
    has_column: bool,
    lacks: Vec<String>,
}

/// Usability of a database that responds.
#[derive(Debug, PartialEq, Eq)]
enum Usability {
    /// It can be used.
    Ready,
    /// The database is read-only at the moment.
    ReadOnly,
    /// An operator must change the database.
    Refused(Vec<String>),
}

/// Returns the faults of a schema's tables for this role, each with its remedy.
fn faults(
    found: &[Found],
    schema: &str,
    database: &str,
    role: &str,
    may_use_schema: bool,
) -> Vec<String> {
    let missing: Vec<&str> = found
        .iter()
        .filter(|table| !table.exists)
        .map(|table| table.table.as_str())
        .collect();
    if missing.len() == found.len() {
        return vec![format!(
            "the database {database} has none of the tables of Tidings in the schema `{schema}`: \
             run `tidings migrate` on it (`tidings::migrate`), or correct the URL or \
             `Inbox::schema` if this is another database"
        )];
    }
    let mut faults = Vec::new();
    let outdated: Vec<&str> = found
        .iter()
        .filter(|table| table.exists && !table.has_column)
        .map(|table| table.table.as_str())
        .collect();
    if !missing.is_empty() || !outdated.is_empty() {
        let tables = [missing, outdated].concat().join(", ");
        faults.push(format!(
            "the tables of the schema `{schema}` in the database {database} are of an earlier \
             version ({tables}): run `tidings migrate` on it"
        ));
    }
    let mut grants: Vec<String> = Vec::new();
    if !may_use_schema {
        grants.push(format!("grant usage on schema {schema} to \"{role}\""));
    }
    let lacking = found
        .iter()
        .filter(|table| table.exists && !table.lacks.is_empty());
    grants.extend(lacking.map(|table| {
        format!(
            "grant {} on {schema}.{} to \"{role}\"",
            table.lacks.join(", "),
            table.table
        )
    }));
    if !grants.is_empty() {
        faults.push(format!(
            "the role {role} lacks rights in the database {database}: {}",
            grants.join("; ")
        ));
    }
    faults
}

/// Returns the error of a query without a response.
pub(crate) fn silent() -> sqlx::Error {
    let silent = std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        "the server accepts connections and does not respond",
    );
    sqlx::Error::Io(silent)
}

impl OpenInbox {
    /// Returns the database and its server, as in the options of the pool.
    pub(crate) fn place(&self) -> String {
        let options = self.pool.connect_options();
        let database = options
            .get_database()
            .unwrap_or_else(|| options.get_username());
        match options.get_socket() {
            Some(socket) => format!("{database} on {}", socket.display()),
            None => format!(
                "{database} on {}:{}",
                options.get_host(),
                options.get_port()
            ),
        }
    }

    async fn examine(&self) -> Result<Usability, sqlx::Error> {
        let mut session = match timeout(ANSWER_WITHIN, self.pool.acquire()).await {
            Ok(session) => session?,
            // The pool waits for a server that refuses connections and does not report why, so a
            // direct connection finds the reason.
            Err(_) => {
                let options = self.pool.connect_options();
                timeout(ANSWER_WITHIN, PgConnection::connect_with(&options))
                    .await
                    .map_err(|_| sqlx::Error::PoolTimedOut)??
                    .close()
                    .await?;
                return Err(sqlx::Error::PoolTimedOut);
            }
        };
        let examined = timeout(ANSWER_WITHIN, self.usability(&mut session)).await;
        if !matches!(examined, Ok(Ok(Usability::Ready))) {
            // A read-only session stays read-only.
            session.close_on_drop();
        }
        examined.unwrap_or_else(|_| Err(silent()))
    }

    async fn usability(&self, session: &mut PgConnection) -> Result<Usability, sqlx::Error> {
        let wanted: Vec<String> = TABLES
            .iter()
            .map(|(table, rights, column)| format!("('{table}', '{rights}', '{column}')"))
            .collect();
        let sql = format!(
            "select wanted.name, c.oid is not null as exists,
                    exists (select from pg_catalog.pg_attribute a
                            where a.attrelid = c.oid and a.attname = wanted.added
                              and not a.attisdropped)
                        as has_column,
                    array(select r.right
                          from pg_catalog.unnest(
                                   pg_catalog.string_to_array(wanted.rights, ',')) r (\"right\")
                          where c.oid is not null
                            and not pg_catalog.has_table_privilege(c.oid, r.right)) as lacks,
                    coalesce(pg_catalog.has_schema_privilege(n.oid, 'usage'), true)
                        as may_use_schema,
                    pg_catalog.pg_is_in_recovery()
                        or pg_catalog.current_setting('transaction_read_only') = 'on' as read_only,
                    current_user::text as role
             from (values {}) wanted (name, rights, added)
             left join pg_catalog.pg_namespace n on n.nspname = $1
             left join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = wanted.name",
            wanted.join(", ")
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .persistent(false)
            .bind(self.schema.as_str())
            .fetch_all(session)
            .await?;
        let (mut found, mut read_only, mut role, mut may_use_schema) =
            (Vec::new(), false, String::new(), true);
        for row in rows {
            read_only |= row.try_get::<bool, _>("read_only")?;
            may_use_schema &= row.try_get::<bool, _>("may_use_schema")?;
            role = row.try_get("role")?;
            found.push(Found {
                table: row.try_get("name")?,
                exists: row.try_get("exists")?,
                has_column: row.try_get("has_column")?,
                lacks: row.try_get("lacks")?,
            });
        }
        let faults = faults(
            &found,
            self.schema.as_str(),
            &self.place(),
            &role,
            may_use_schema,
        );
        Ok(match (faults.is_empty(), read_only) {
            (false, _) => Usability::Refused(faults),
            (true, true) => Usability::ReadOnly,
            (true, false) => Usability::Ready,
        })
    }
}

impl Plan {
    /// Waits until the inbox's database can be used. Returns `false` if the subscriber is shut down
    /// first.
    ///
    /// # Errors
    ///
    /// Returns an error with the remedy if an operator must change the database.
    pub(crate) async fn wait_for_database(
        &self,
        stop: &CancellationToken,
    ) -> Result<bool, RunError> {
        let Some(inbox) = &self.core.inbox else {
            return Ok(true);
        };
        self.statistics
            .starting(format!("it checks the database {}", inbox.place()));
        let (reports, mut has_waited) = (LogLimit::default(), false);
        loop {
            let examined = tokio::select! {
                () = stop.cancelled() => return Ok(false),
                examined = inbox.examine() => examined,
            };
            let reason = match examined {
                Ok(Usability::Ready) => {
                    if has_waited {
                        tracing::info!(
                            subscriber = self.name,
                            database = inbox.place(),
                            "the database can be used"
                        );
                    }
                    return Ok(true);
                }
                Ok(Usability::Refused(faults)) => return Err(RunError::Settings(faults)),
                Ok(Usability::ReadOnly) => format!("the database {} is read-only", inbox.place()),
                Err(error) => format!(
                    "the database {} cannot be used: {}",
                    inbox.place(),
                    with_causes(&error)
                ),
            };
            has_waited = true;
            if reports.admit(Instant::now()).is_some() {
                tracing::warn!(
                    subscriber = self.name,
                    "{reason}; the subscriber waits and reads no events until then: start the \
                     database, or correct the URL or the password of the pool"
                );
            }
            self.statistics.starting(reason);
            if !pause(stop).await {
                return Ok(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(change: impl Fn(&mut Found)) -> Vec<Found> {
        let found = |(table, ..): &(&str, &str, &str)| {
            let mut found = Found {
                table: (*table).into(),
                exists: true,
                has_column: true,
                lacks: Vec::new(),
            };
            change(&mut found);
            found
        };
        TABLES.iter().map(found).collect()
    }

    #[test]
    fn each_fault_of_a_database_names_its_remedy() {
        let of = |found: &[Found], usage| faults(found, "tidings", "shop on db:5432", "app", usage);
        assert_eq!(of(&found(|_| ()), true), Vec::<String>::new());
        let empty = of(&found(|table| table.exists = false), true);
        assert!(
            empty.len() == 1
                && empty[0].contains("tidings migrate")
                && empty[0].contains("shop on db:5432"),
            "{empty:?}"
        );
        let old = of(
            &found(|table| table.has_column = table.table != "subscriber_parked"),
            true,
        );
        assert!(
            old.len() == 1
                && old[0].contains("(subscriber_parked)")
                && old[0].contains("tidings migrate"),
            "{old:?}"
        );
        let older = of(
            &found(|table| table.exists = table.table != "subscriber"),
            true,
        );
        assert!(
            older.len() == 1 && older[0].contains("(subscriber)"),
            "{older:?}"
        );
        let lacks = |table: &mut Found| {
            if table.table == "inbox_collision" {
                table.lacks = vec!["select".into(), "insert".into()];
            }
        };
        let denied = of(&found(lacks), false);
        assert!(
            denied[0].contains("grant usage on schema tidings to \"app\""),
            "{denied:?}"
        );
        assert!(
            denied[0].contains("grant select, insert on tidings.inbox_collision to \"app\""),
            "{denied:?}"
        );
    }
}
