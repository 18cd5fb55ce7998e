//! Selection of the source: the table until the log can follow it, then the log.
//!
//! ```text
//!            no slot yet, or the slot starts beyond the position, or far behind (auto)
//!          ┌───────────────────────────────────────────────────────────────────────────┐
//!          ▼                                                                           │
//! TABLE: window after window ── reached the slot's start, and few events are left ──▶ LOG: streams
//!          │                                                                           │
//!          ▼                                                                           ▼
//! forever: source = poll,                                    the slot is lost: the session ends,
//! or no logical replication                                  the next one starts with the table
//! ```
//!
//! Both sources share one position (see `position`). A change of the source therefore neither loses
//! nor repeats an event, and no event is lost with a slot.

use std::{convert::Infallible, time::Duration};

use tokio::{sync::Notify, task::JoinHandle, time::Instant};

use super::{
    notify,
    pages::UNCHECKED_TEXT,
    parked::release,
    slot::{self, Log},
    table::TableSource,
    wal::{BEHIND_BYTES, WalSource},
};
use crate::{
    failpoint::{self, Step},
    postgres::{Lsn, replication::Connection},
    relay::{
        RelayOptions, SourceKind,
        error::Interruption,
        leadership::relay_store::Reading,
        monitor::metrics::RelayMetrics,
        pipeline::{Pipeline, Stop},
        row::table_layout::TableLayout,
        startup::{names::LogNames, server::Server},
    },
};

/// A window with fewer events than this is the last one before the stream follows.
const LITTLE: u64 = 2_000;

/// If the slot is behind the position by more bytes than this, it is advanced before the stream is
/// read. Otherwise the stream would decode this log.
const ADVANCE_BYTES: u64 = 16 << 20;

/// Interval between reads of a table without new events. A read costs a tenth of a millisecond.
const POLL: Duration = Duration::from_millis(50);

/// Interval between attempts while logical replication is unavailable.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// Availability of the log.
enum WalAvailability {
    /// The log is not wanted.
    NotWanted,
    /// The log is unavailable at present.
    Unavailable { reason: String, tried: Instant },
    /// A slot is being created.
    Making(JoinHandle<Result<(), Interruption>>),
    /// The slot streams every commit from here on.
    From(Lsn),
    /// The slot is being advanced.
    Advancing(JoinHandle<Result<(), Interruption>>),
}

/// The inputs of a session for its sources.
pub(crate) struct SourceSelector<'s> {
    pub(crate) options: &'s RelayOptions,
    pub(crate) server: &'s Server,
    pub(crate) names: &'s LogNames,
    pub(crate) table_layout: &'s TableLayout,
    /// The operator has moved the position.
    pub(crate) moved: bool,
    pub(crate) observer: &'s RelayMetrics,
    /// The slot's log could not be decoded in the last session.
    pub(crate) log_unusable: bool,
    /// The server did not stream the log in the last session, although it accepted the connection.
    pub(crate) log_silent: bool,
}

impl SourceSelector<'_> {
    /// Publishes until the relay shuts down or the session is interrupted. Records may still be in
    /// flight then.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`] if the relay shuts down or the session is interrupted.
    pub(crate) async fn run(&self, pipeline: &mut Pipeline) -> Result<Infallible, Stop> {
        if let Some(reason) = self.table_layout.log_only() {
            return self.follow(reason, pipeline).await;
        }
        // Decisions made while no relay ran come first, because they may make room for more parked
        // events.
        release(pipeline).await?;
        let mut log = self.look(pipeline, self.log_unusable).await?;
        if self.log_silent && self.options.source == SourceKind::Auto {
            log = WalAvailability::Unavailable {
                reason: "the server accepts a stream connection and does not answer".into(),
                tried: Instant::now(),
            };
        }
        let mut table = TableSource::new(self.options, self.table_layout);
        let mut behind = self.behind(pipeline).await? > BEHIND_BYTES;
        let news = notify::listen(self.options);
        loop {
            log = self.attend(log, pipeline).await?;
            if let WalAvailability::From(confirmed) = log
                && self.may_stream(confirmed, behind, pipeline)
            {
                let lag = pipeline.settled().resume_lsn.0 - confirmed.0;
                if lag > ADVANCE_BYTES {
                    // Only the durable position may be confirmed. Until it is past the slot's, the
                    // table is read.
                    let safe = pipeline.durable().0.resume_lsn;
                    if safe > confirmed {
                        tracing::info!(
                            bytes = lag,
                            "advances the slot past log whose events were read from the table"
                        );
                        log = WalAvailability::Advancing(slot::advance(
                            self.options,
                            self.names,
                            safe,
                        ));
                    }
                } else {
                    let megabytes = self.stream(pipeline).await? >> 20;
                    pipeline.reads(
                        Reading::Table,
                        format!("behind by {megabytes} MB of log: the table is the faster source"),
                    );
                    behind = true;
                    // The stream's connection is closed. The positions confirmed on it stay
                    // confirmed.
                    log = self.look(pipeline, false).await?;
                    continue;
                }
            }
            pipeline.reads(Reading::Table, log.reason(behind));
            self.observer.pulse().step("reading the table");
            let events = table.window(pipeline, self.observer).await?;
            behind &= events >= LITTLE;
            pipeline.end_batch_if_wanted(events < LITTLE).await?;
            if events == 0 {
                pipeline.caught_up();
                self.wait(pipeline, &news).await?;
            }
        }
    }

    /// Returns the current availability of the log.
    async fn look(
        &self,
        pipeline: &mut Pipeline,
        unusable: bool,
    ) -> Result<WalAvailability, Interruption> {
        let session = pipeline.connection();
        if self.options.source == SourceKind::Poll {
            slot::forget(self.names, session).await?;
            return Ok(WalAvailability::NotWanted);
        }
        if !self.server.logical {
            let reason = format!(
                "wal_level is `{}`: run ALTER SYSTEM SET wal_level = logical and restart Postgres \
                 (on a managed service, set rds.logical_replication, cloudsql.logical_decoding or \
                 the like)",
                self.server.wal_level
            );
            return self.unavailable(Interruption::Refused(reason));
        }
        match slot::examine(self.options, self.names, session, unusable).await {
            Ok(Log::From(confirmed)) => Ok(WalAvailability::From(confirmed)),
            Ok(Log::None) => Ok(WalAvailability::Making(slot::make(
                self.options,
                self.names,
                self.server,
            ))),
            Err(error) if cannot_be_had(&error) => self.unavailable(error),
            Err(error) => Err(error),
        }
    }

    /// Continues with the table if logical replication is unavailable. Returns the error if the
    /// operator requires the log.
    fn unavailable(&self, error: Interruption) -> Result<WalAvailability, Interruption> {
        if self.options.source == SourceKind::Wal {
            return Err(error);
        }
        let reason = match error.meaning() {
            crate::relay::error::Meaning::NeedsPerson(text) => text,
            _ => error.full(),
        };
        tracing::warn!(
            "no logical replication: {reason}; reads the table only, which is slower to notice new \
             events (set source = \"poll\" if this is intended)"
        );
        Ok(WalAvailability::Unavailable {
            reason,
            tried: Instant::now(),
        })
    }

    /// Processes the result of a task that works on the slot, and retries after [`TRY_AGAIN`].
    async fn attend(
        &self,
        log: WalAvailability,
        pipeline: &mut Pipeline,
    ) -> Result<WalAvailability, Interruption> {
        match log {
            WalAvailability::Making(task) if task.is_finished() => match task.await {
                Ok(Ok(())) => {
                    failpoint::reached(Step::SlotMade);
                    self.look(pipeline, false).await
                }
                Ok(Err(error)) if cannot_be_had(&error) => self.unavailable(error),
                Ok(Err(error)) => Err(error),
                Err(error) => Err(Interruption::Refused(format!(
                    "creating the slot broke off: {error}"
                ))),
            },
            WalAvailability::Advancing(task) if task.is_finished() => {
                match task.await {
                    Ok(Ok(())) => failpoint::reached(Step::SlotAdvanced),
                    Ok(Err(error)) => {
                        tracing::warn!("{}; the log is decoded instead", error.full())
                    }
                    Err(error) => {
                        return Err(Interruption::Refused(format!(
                            "advancing the slot broke off: {error}"
                        )));
                    }
                }
                self.look(pipeline, false).await
            }
            WalAvailability::Unavailable { tried, .. } if tried.elapsed() > TRY_AGAIN => {
                self.look(pipeline, false).await
            }
            other => Ok(other),
        }
    }

    /// Returns the number of bytes of log after the position.
    async fn behind(&self, pipeline: &mut Pipeline) -> Result<u64, Interruption> {
        let log = pipeline.settled().resume_lsn;
        Ok(slot::insert_position(pipeline.connection())
            .await?
            .0
            .saturating_sub(log.0))
    }

    /// Returns `true` if a stream that starts at `confirmed` may follow: all events before it are
    /// published, and no window is open.
    fn may_stream(&self, confirmed: Lsn, behind: bool, pipeline: &Pipeline) -> bool {
        let position = pipeline.settled();
        let covered = position.window.is_none() && position.resume_lsn >= confirmed;
        covered && (!behind || self.options.source == SourceKind::Wal)
    }

    /// Streams the log. Returns the number of bytes of unread log once the table is the faster
    /// source.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`] if the relay shuts down or the session is interrupted.
    pub(super) async fn stream(&self, pipeline: &mut Pipeline) -> Result<u64, Stop> {
        let application = self.options.database.application_name("relay stream");
        let LogNames { slot, publication } = self.names;
        let from = pipeline.settled().resume_lsn;
        self.observer
            .pulse()
            .step("requesting the stream of the log");
        let opening = async {
            let mut connection = Connection::open(&self.options.database, &application)
                .await
                .map_err(Interruption::ConnectingForReplication)?;
            let starting = "starting the stream";
            connection
                .query(UNCHECKED_TEXT)
                .await
                .map_err(Interruption::replication(starting))?;
            connection
                .stream(slot, publication, from)
                .await
                .map_err(Interruption::replication(starting))
        };
        let (reader, status) = tokio::select! {
            opened = opening => opened?,
            () = pipeline.shutdown().cancelled() => return Err(Stop::Shutdown),
        };
        let alone = self
            .table_layout
            .log_only()
            .map(|reason| format!("streams only the log: {reason}"));
        pipeline.reads(
            Reading::Wal,
            alone.unwrap_or_else(|| "streams the log".into()),
        );
        tracing::info!(slot, %from, "streams the log");
        pipeline.stream_started(status);
        let mut source = WalSource::new(reader, self.options, self.table_layout);
        let leave_when_behind =
            self.options.source == SourceKind::Auto && self.table_layout.log_only().is_none();
        let end = source.run(pipeline, self.observer, leave_when_behind).await;
        if !matches!(end, Err(Stop::Interrupted(_))) {
            pipeline.end_stream().await;
        }
        end
    }

    /// Waits until the table may have new events.
    async fn wait(&self, pipeline: &mut Pipeline, news: &Notify) -> Result<(), Stop> {
        tokio::select! {
            biased;
            due = pipeline.due() => {
                due?;
                pipeline.tick().await?;
                release(pipeline).await?;
            }
            () = news.notified() => {}
            () = tokio::time::sleep(POLL) => {}
        }
        Ok(())
    }
}

impl WalAvailability {
    /// Returns the reason for reading the table.
    fn reason(&self, behind: bool) -> String {
        match self {
            Self::NotWanted => "source is poll".into(),
            Self::Unavailable { reason, .. } => format!("no logical replication: {reason}"),
            Self::Making(_) => "the slot is being created".into(),
            Self::From(_) if behind => "behind: the table is the faster source".into(),
            Self::From(_) => "the position has not reached the slot's start yet".into(),
            Self::Advancing(_) => "the slot is being advanced".into(),
        }
    }
}

/// Returns `true` if the error means that logical replication is unavailable: an altered
/// publication, a missing privilege (insufficient_privilege), no free slot
/// (configuration_limit_exceeded), no logical log (object_not_in_prerequisite_state).
fn cannot_be_had(error: &Interruption) -> bool {
    matches!(error, Interruption::PublicationUnfit(_))
        || matches!(error.code().as_deref(), Some("42501" | "53400" | "55000"))
}
