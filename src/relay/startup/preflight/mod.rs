//! Conditions for the work of a relay: one list for the relay's start and for `tidings check`.
//!
//! ```text
//! facts (one query) ─▶ server, tables, outbox: pure checks ─┐
//! probes: log (publication, slot), position                 ┴▶ Conditions ─▶ refusal of the start
//!                                                                         └▶ output of `check`
//! ```
//!
//! A new condition is either a check of `Facts` in the file of its object, or a probe that
//! [`examine`] calls. A probe adds to the list with [`Conditions::met`],
//! [`warn`](Conditions::warn), [`wait`](Conditions::wait) or [`refuse`](Conditions::refuse). Text
//! and remedy appear word for word in both places, so a remedy must be complete by itself.

#[cfg(feature = "cli")]
mod cluster;
mod facts;
mod log;
mod outbox;
mod position;
mod server;
mod tables;

#[cfg(test)]
mod tests;

use sqlx::{Connection as _, PgConnection};

use super::pooler;
use crate::relay::{
    RelayOptions, SourceKind,
    error::Interruption,
    leadership::relay_store::{connect, within},
    row::table_layout,
};
use facts::Facts;
pub(crate) use outbox::require_own_transactions;

/// Severity of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// The condition holds.
    Met,
    /// The relay works until another fault occurs.
    Warning,
    /// The relay waits until the condition holds.
    Waits,
    /// The relay does not start.
    Refused,
}

/// One examined condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// The examined object, for instance a setting's name.
    pub(crate) name: String,
    pub(crate) level: Level,
    /// The result.
    pub(crate) text: String,
    /// The remedy, with the setting or the SQL. `None` if no action is needed, or if the text
    /// contains the remedy.
    pub(crate) remedy: Option<String>,
}

/// The examined conditions, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Conditions(pub(crate) Vec<Condition>);

/// The relay's need for the write-ahead log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Log {
    /// The relay cannot work without the log.
    Needed,
    /// The relay reads the table if the log is unavailable.
    Wanted,
    /// The relay reads only the table.
    Unwanted,
}

impl Conditions {
    /// Adds a condition that holds.
    pub(crate) fn met(&mut self, name: &str, text: impl Into<String>) {
        self.add(name, Level::Met, text.into(), None);
    }

    /// Adds a condition that does not hold but does not stop the relay.
    pub(crate) fn warn(&mut self, name: &str, text: impl Into<String>, remedy: impl Into<String>) {
        self.add(name, Level::Warning, text.into(), Some(remedy.into()));
    }

    /// Adds a condition that the relay waits for.
    pub(crate) fn wait(&mut self, name: &str, text: impl Into<String>, remedy: impl Into<String>) {
        self.add(name, Level::Waits, text.into(), Some(remedy.into()));
    }

    /// Adds a condition that prevents the relay's start.
    pub(crate) fn refuse(
        &mut self,
        name: &str,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(name, Level::Refused, text.into(), Some(remedy.into()));
    }

    /// Adds a condition of the log that does not hold. It is a refusal only if the relay cannot
    /// work without the log.
    fn without_log(
        &mut self,
        log: Log,
        name: &str,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let level = if log == Log::Needed {
            Level::Refused
        } else {
            Level::Warning
        };
        self.add(name, level, text.into(), Some(remedy.into()));
    }

    /// Adds the result of a probe. `log` decides the level of a fault of the log. Returns `false`
    /// if the condition does not hold.
    ///
    /// # Errors
    ///
    /// Returns an error that does not concern the condition, such as a lost connection.
    fn probed(
        &mut self,
        name: &str,
        log: Log,
        found: Result<String, Interruption>,
    ) -> Result<bool, Interruption> {
        let (level, text) = match found {
            Ok(text) => (Level::Met, text),
            Err(Interruption::Refused(text)) => (Level::Refused, text),
            Err(Interruption::PublicationUnfit(text)) if log == Log::Needed => {
                (Level::Refused, text)
            }
            Err(Interruption::PublicationUnfit(text)) => (Level::Warning, text),
            Err(waits @ Interruption::Connections { .. }) => (Level::Waits, waits.full()),
            Err(other) => return Err(other),
        };
        self.add(name, level, text, None);
        Ok(level == Level::Met)
    }

    fn add(&mut self, name: &str, level: Level, text: String, remedy: Option<String>) {
        self.0.push(Condition {
            name: name.to_owned(),
            level,
            text,
            remedy,
        });
    }

    /// Returns `true` if all conditions hold that further probes depend on.
    fn hold(&self) -> bool {
        self.0
            .iter()
            .all(|condition| condition.level < Level::Waits)
    }

    /// Checks that a relay may start now.
    ///
    /// # Errors
    ///
    /// Returns all refusals in one [`Interruption::Refused`], or else an [`Interruption::Waiting`]
    /// with the conditions that the relay waits for.
    pub(crate) fn require(&self) -> Result<(), Interruption> {
        let of = |level| {
            self.0
                .iter()
                .filter(move |condition| condition.level == level)
                .map(Condition::message)
                .collect::<Vec<_>>()
        };
        let (refused, awaited) = (of(Level::Refused), of(Level::Waits));
        match (refused.is_empty(), awaited.is_empty()) {
            (false, _) => Err(Interruption::Refused(refused.join("\n"))),
            (true, false) => Err(Interruption::Waiting(awaited.join("; "))),
            (true, true) => Ok(()),
        }
    }
}

impl Condition {
    fn message(&self) -> String {
        self.remedy.as_ref().map_or_else(
            || self.text.clone(),
            |remedy| format!("{}; {remedy}", self.text),
        )
    }
}

/// Examines every condition of the database.
///
/// # Errors
///
/// Returns an error if the connection is lost.
pub(crate) async fn examine(
    options: &RelayOptions,
    session: &mut PgConnection,
) -> Result<Conditions, Interruption> {
    let mut conditions = Conditions::default();
    let facts = within(
        "querying the server's properties",
        Facts::ask(options, session),
    )
    .await?;
    let log = log_of(options, session, &mut conditions).await?;
    server::judge(&facts, log, &mut conditions);
    tables::judge(&facts, options, &mut conditions);
    outbox::judge(&facts, options, &mut conditions);
    // The probes read tables.
    if conditions.hold() {
        log::probe(&facts, options, log, session, &mut conditions).await?;
        position::probe(options, session, &mut conditions).await?;
    }
    // The remedies for a position in another database also cover the rows.
    if conditions.hold() {
        outbox::probe(options, session, &mut conditions).await?;
    }
    Ok(conditions)
}

/// Examines the connection and the database, for `tidings check`.
///
/// # Errors
///
/// Returns an error that does not concern a condition, such as a lost connection.
#[cfg(feature = "cli")]
pub(crate) async fn examine_all(options: &RelayOptions) -> Result<Vec<Condition>, Interruption> {
    all(options).await.map(|conditions| conditions.0)
}

#[cfg(feature = "cli")]
async fn all(options: &RelayOptions) -> Result<Conditions, Interruption> {
    let mut conditions = Conditions::default();
    let direct = pooler::require_direct(options)
        .await
        .map(|()| "none detected".to_owned());
    if conditions.probed("pooler", Log::Wanted, direct)? {
        let enough = pooler::require_connections(options)
            .await
            .map(|()| "enough for a leader".to_owned());
        conditions.probed("connections", Log::Wanted, enough)?;
        let mut session = connect(options, "check").await?;
        conditions.0.extend(examine(options, &mut session).await?.0);
        let _ = session.close().await;
    }
    Ok(conditions)
}

/// Examines the positions in Kafka, for `tidings check`. Adds nothing if a broker does not answer,
/// because `check` examines the brokers separately.
#[cfg(feature = "cli")]
pub(crate) async fn examine_positions(options: &RelayOptions) -> Vec<Condition> {
    let mut conditions = Conditions::default();
    if let Ok(mut session) = connect(options, "check").await {
        let _ = cluster::probe(options, &mut session, &mut conditions).await;
        let _ = session.close().await;
    }
    conditions.0
}

/// Checks that a relay may start.
///
/// # Errors
///
/// Returns the refusals, the conditions that the relay waits for, or an error if the connection is
/// lost.
pub(crate) async fn require(options: &RelayOptions) -> Result<(), Interruption> {
    let mut session = connect(options, "relay preflight").await?;
    let conditions = examine(options, &mut session).await?;
    let _ = session.close().await;
    conditions.require()
}

/// Returns the relay's need for the log. For a Debezium table, the columns decide.
async fn log_of(
    options: &RelayOptions,
    session: &mut PgConnection,
    conditions: &mut Conditions,
) -> Result<Log, Interruption> {
    let only = match table_layout::examine(options, session).await {
        Ok(table_layout) => table_layout.log_only().is_some(),
        Err(refused) => {
            conditions.probed("outbox", Log::Wanted, Err(refused))?;
            false
        }
    };
    Ok(match options.source {
        _ if only => Log::Needed,
        SourceKind::Wal => Log::Needed,
        SourceKind::Auto => Log::Wanted,
        SourceKind::Poll => Log::Unwanted,
    })
}

/// Returns an identifier for displayed SQL, in quotes if it needs them.
fn quoted(name: &str) -> String {
    let plain = name
        .bytes()
        .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
        && !name.starts_with(|c: char| c.is_ascii_digit());
    if plain {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}
