//! Registration of this instance in its group, and its view of the other instances. Contains all
//! SQL for the table `subscriber`.
//!
//! An instance may skip a type without a handler only if its view is younger than [`LEASE`]. It
//! therefore reads the table at most twice a second, regardless of the number of skipped events. A
//! newly registered instance waits for [`LEASE`] before it joins the group if a running instance
//! lacks one of its types. After that, no instance skips these types.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgPool};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::held_types::{LIVE, Other, held_types};
use crate::{
    fnv::fnv1a,
    postgres::{
        encodable::{bytes_of, encodable},
        errors::with_causes,
        session_fault,
    },
    subscriber::{attempt::pause::Pause, inbox::OpenInbox},
};

/// Maximum age of a view that allows skipping a type.
pub(crate) const LEASE: Duration = Duration::from_millis(500);

/// Time between two heartbeats. A heartbeat is a small update, and its interval is a sixth of
/// [`LIVE`].
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Number of days for which an instance that does not run is kept.
const KEEP_DAYS: i32 = 7;

/// Time limit for the last statement of an instance.
const FAREWELL: Duration = Duration::from_secs(2);

/// The data that an instance registers.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    pub(crate) version: String,
    pub(crate) types: Vec<String>,
    pub(crate) topics: Vec<String>,
    pub(crate) escalation: &'static str,
    pub(crate) waits_for_newer_code: bool,
}

/// Result of the check whether a type without a handler may be skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// No other instance handles the type.
    Free,
    /// Another instance handles the type, or may do so again.
    Held,
}

/// This instance and its view of the others.
pub(crate) struct Registry {
    pool: PgPool,
    consumer: String,
    instance: Uuid,
    own: Registration,
    statements: Statements,
    view: RwLock<Option<View>>,
    /// Limits refreshes of the view to one at a time. Its result serves all waiting tasks.
    refreshing: tokio::sync::Mutex<()>,
    /// Held types that were reported.
    reported: Mutex<HashSet<String>>,
}

struct View {
    held: HashSet<String>,
    as_of: Instant,
}

impl View {
    fn claim(&self, event_type: &str) -> Claim {
        if self.held.contains(event_type) {
            Claim::Held
        } else {
            Claim::Free
        }
    }
}

struct Statements {
    register: Arc<str>,
    tidy: Arc<str>,
    heartbeat: Arc<str>,
    others: Arc<str>,
    stop: Arc<str>,
}

impl Statements {
    fn new(schema: &str) -> Self {
        let table = format!(r#""{schema}".subscriber"#);
        Self {
            register: format!(
                "insert into {table} as s \
                 (consumer, instance, host, version, types, topics, escalation, version_since) \
                 values ($1, $2, {}, $4, $5, $6, $7, \
                         coalesce((select pg_catalog.min(version_since) from {table} \
                                   where consumer = $1 and version = $4), pg_catalog.now())) \
                 on conflict (consumer, instance) do update \
                 set seen_at = pg_catalog.now(), stopped_at = null",
                encodable("$3::bytea")
            )
            .into(),
            // One row per version is enough to show its types: the row of this instance. Restarts
            // therefore do not fill the table.
            tidy: format!(
                "delete from {table} where consumer = $1 and instance <> $2 \
                 and (seen_at < pg_catalog.now() - $4 * interval '1 day' \
                      or version = $3 and (stopped_at is not null \
                          or seen_at < pg_catalog.now() - $5 * interval '1 second'))"
            )
            .into(),
            heartbeat: format!(
                "update {table} set seen_at = pg_catalog.now(), stopped_at = null, \
                 paused_since = $3 where consumer = $1 and instance = $2"
            )
            .into(),
            others: format!(
                "select types, \
                 version_since > coalesce((select version_since from {table} \
                     where consumer = $1 and instance = $2), pg_catalog.now()), \
                 greatest(extract(epoch from pg_catalog.now() - seen_at), 0)::float8, \
                 stopped_at is not null \
                 from {table} where consumer = $1 and instance <> $2 \
                 and seen_at >= pg_catalog.now() - $3 * interval '1 day'"
            )
            .into(),
            stop: format!(
                "update {table} set seen_at = pg_catalog.now(), stopped_at = pg_catalog.now() \
                 where consumer = $1 and instance = $2"
            )
            .into(),
        }
    }
}

impl Registry {
    pub(crate) fn new(inbox: &OpenInbox, own: Registration) -> Self {
        Self {
            pool: inbox.pool.clone(),
            consumer: inbox.consumer.clone(),
            instance: Uuid::now_v7(),
            own,
            statements: Statements::new(inbox.schema.as_str()),
            view: RwLock::default(),
            refreshing: tokio::sync::Mutex::default(),
            reported: Mutex::default(),
        }
    }

    /// Registers this instance. Returns the time for which it must wait before it joins the group.
    ///
    /// # Errors
    ///
    /// Returns the database's error.
    pub(crate) async fn register(&self) -> Result<Duration, sqlx::Error> {
        sqlx::query(AssertSqlSafe(self.statements.register.clone()))
            .persistent(false)
            .bind(&self.consumer)
            .bind(self.instance)
            .bind(bytes_of(&host()))
            .bind(&self.own.version)
            .bind(&self.own.types)
            .bind(&self.own.topics)
            .bind(self.own.escalation)
            .execute(&self.pool)
            .await?;
        sqlx::query(AssertSqlSafe(self.statements.tidy.clone()))
            .persistent(false)
            .bind(&self.consumer)
            .bind(self.instance)
            .bind(&self.own.version)
            .bind(KEEP_DAYS)
            .bind(LIVE.as_secs_f64())
            .execute(&self.pool)
            .await?;
        let others = self.others().await?;
        let lacks = |other: &Other| self.own.types.iter().any(|own| !other.types.contains(own));
        Ok(
            if others.iter().any(|other| other.is_live() && lacks(other)) {
                LEASE
            } else {
                Duration::ZERO
            },
        )
    }

    /// Returns whether a type may be skipped. Returns `None` if the view is too old.
    pub(crate) fn known_claim(&self, event_type: &str) -> Option<Claim> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let view = view.as_ref().filter(|view| view.as_of.elapsed() < LEASE)?;
        Some(view.claim(event_type))
    }

    /// Returns whether a type may be skipped.
    ///
    /// # Errors
    ///
    /// Returns the database's error.
    pub(crate) async fn claim(&self, event_type: &str) -> Result<Claim, sqlx::Error> {
        if let Some(claim) = self.known_claim(event_type) {
            return Ok(claim);
        }
        let _alone = self.refreshing.lock().await;
        if let Some(claim) = self.known_claim(event_type) {
            return Ok(claim);
        }
        let as_of = Instant::now();
        let view = View {
            held: held_types(self.others().await?, self.own.waits_for_newer_code),
            as_of,
        };
        // The age of the view does not matter here, because it was read after the event.
        let claim = view.claim(event_type);
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Some(view);
        Ok(claim)
    }

    /// Returns `true` the first time that a type is held.
    pub(crate) fn is_first_held(&self, event_type: &str) -> bool {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        !reported.contains(event_type) && reported.insert(event_type.to_owned())
    }

    /// Sends heartbeats until the subscriber stops, then records that it has stopped cleanly. A
    /// heartbeat confirms the pause by an operator, so each change of the pause sends one.
    pub(crate) async fn keep(self: Arc<Self>, pause: Arc<Pause>, stop: CancellationToken) {
        let mut confirmed = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = pause.held_by_other(confirmed.as_deref()) => {}
                () = tokio::time::sleep(HEARTBEAT) => {}
            }
            confirmed = pause.held_by();
            let since = confirmed.as_ref().map(|pause| pause.since);
            if let Err(error) = self.beat(since).await {
                session_fault::close_after(&error, &self.pool);
                tracing::warn!(
                    subscriber = self.consumer,
                    error = with_causes(&error),
                    "the heartbeat of this instance cannot be stored"
                );
            }
        }
        let stopped = sqlx::query(AssertSqlSafe(self.statements.stop.clone()))
            .persistent(false)
            .bind(&self.consumer)
            .bind(self.instance)
            .execute(&self.pool);
        match tokio::time::timeout(FAREWELL, stopped).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::debug!(
                    subscriber = self.consumer,
                    error = with_causes(&error),
                    "the stop of this instance cannot be stored"
                )
            }
            Err(_) => tracing::debug!(
                subscriber = self.consumer,
                "the stop of this instance was not stored in time"
            ),
        }
    }

    async fn beat(&self, paused_since: Option<DateTime<Utc>>) -> Result<(), sqlx::Error> {
        let beat = || {
            sqlx::query(AssertSqlSafe(self.statements.heartbeat.clone()))
                .persistent(false)
                .bind(&self.consumer)
                .bind(self.instance)
                .bind(paused_since)
        };
        if beat().execute(&self.pool).await?.rows_affected() == 0 {
            self.register().await?;
            beat().execute(&self.pool).await?;
        }
        Ok(())
    }

    async fn others(&self) -> Result<Vec<Other>, sqlx::Error> {
        let others =
            sqlx::query_as(AssertSqlSafe(self.statements.others.clone())).persistent(false);
        let rows: Vec<(Vec<String>, bool, f64, bool)> = others
            .bind(&self.consumer)
            .bind(self.instance)
            .bind(KEEP_DAYS)
            .fetch_all(&self.pool)
            .await?;
        let other = |(types, is_newer, seen, is_stopped)| {
            let seen = Duration::try_from_secs_f64(seen).unwrap_or(Duration::MAX);
            Other {
                types,
                is_newer,
                seen,
                is_stopped,
            }
        };
        Ok(rows.into_iter().map(other).collect())
    }
}

/// Returns the version of code that names none: a hash of its types and topics. It is stored, so it
/// must be the same on every machine.
pub(crate) fn version_of(types: &[String], topics: &[String]) -> String {
    let parts = types
        .iter()
        .chain(topics)
        .flat_map(|part| part.bytes().chain([0]));
    format!("{:016x}", fnv1a(parts))
}

fn host() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok());
    format!(
        "{} {}",
        host.as_deref().map_or("unknown", str::trim),
        std::process::id()
    )
}
