//! Which source is read: the table until the log can follow it, the log at its head.
//!
//! ```text
//!              no slot yet, or the slot starts beyond the position, or far behind (auto)
//!            ┌────────────────────────────────────────────────────────────────────────────┐
//!            ▼                                                                            │
//! TABLE: windows one after the other ── covered by the slot, and little left ──▶ LOG: streams
//!            │                                                                            │ the slot is lost: the session ends, and the
//!            └── for ever: source = poll, or no logical replication to be had            ▼ next one begins with the table
//! ```
//!
//! One position serves both (see `position`), so the change loses and repeats nothing, and a lost slot is not a loss.

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
        monitor::metrics::Observer,
        pipeline::{Pipeline, Stop},
        row::table_layout::Shape,
        startup::{names::LogNames, server::Server},
    },
};

/// A window with fewer events is the last one before the stream follows.
const LITTLE: u64 = 2_000;

/// Behind the position by more than this much log, bytes, the slot is advanced before the stream is read: it would be decoded otherwise.
const ADVANCE_BYTES: u64 = 16 << 20;

/// Between two looks at a table in which nothing is new. One costs a tenth of a millisecond.
const POLL: Duration = Duration::from_millis(50);

/// Between two tries for logical replication that could not be had.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// What can be had of the log.
enum LogSide {
    /// Nothing, and nothing is wanted.
    NotWanted,
    /// Nothing at present.
    Unavailable { reason: String, tried: Instant },
    /// A slot is being made.
    Making(JoinHandle<Result<(), Interruption>>),
    /// The slot streams every commit from here on.
    From(Lsn),
    /// The slot is being advanced.
    Advancing(JoinHandle<Result<(), Interruption>>),
}

/// Everything that a session works with.
pub(crate) struct SourceSelector<'s> {
    pub(crate) options: &'s RelayOptions,
    pub(crate) server: &'s Server,
    pub(crate) names: &'s LogNames,
    pub(crate) shape: &'s Shape,
    /// The operator has moved the position.
    pub(crate) moved: bool,
    pub(crate) observer: &'s Observer,
    /// The slot's log could not be decoded in the last session.
    pub(crate) log_unusable: bool,
    /// The server did not stream the log in the last session, although it accepted the connection.
    pub(crate) log_silent: bool,
}

impl SourceSelector<'_> {
    /// Publishes until the relay is shut down or the session is interrupted. Records may still be under way then.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`].
    pub(crate) async fn run(&self, pipeline: &mut Pipeline) -> Result<Infallible, Stop> {
        if let Some(reason) = self.shape.log_only() {
            return self.follow(reason, pipeline).await;
        }
        // What was decided while no relay ran comes first: it may be what makes room for more.
        release(pipeline).await?;
        let mut log = self.look(pipeline, self.log_unusable).await?;
        if self.log_silent && self.options.source == SourceKind::Auto {
            log = LogSide::Unavailable {
                reason: "the server accepts a stream and does not answer".into(),
                tried: Instant::now(),
            };
        }
        let mut table = TableSource::new(self.options, self.shape);
        let mut behind = self.behind(pipeline).await? > BEHIND_BYTES;
        let news = notify::listen(self.options);
        loop {
            log = self.attend(log, pipeline).await?;
            if let LogSide::From(confirmed) = log
                && self.may_stream(confirmed, behind, pipeline)
            {
                let lag = pipeline.settled().log.0 - confirmed.0;
                if lag > ADVANCE_BYTES {
                    // Only what is safe: until then the table is read on.
                    let safe = pipeline.durable().0.log;
                    if safe > confirmed {
                        tracing::info!(
                            bytes = lag,
                            "has the slot forget the log that the table stood in for"
                        );
                        log = LogSide::Advancing(slot::advance(self.options, self.names, safe));
                    }
                } else {
                    let megabytes = self.stream(pipeline).await? >> 20;
                    pipeline.reads(
                        Reading::Table,
                        format!("behind by {megabytes} MB of log, which the table is faster for"),
                    );
                    behind = true;
                    // The stream's connection is closed, and what it had confirmed stays confirmed.
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

    /// What can be had of the log now.
    async fn look(&self, pipeline: &mut Pipeline, unusable: bool) -> Result<LogSide, Interruption> {
        let session = pipeline.connection();
        if self.options.source == SourceKind::Poll {
            slot::forget(self.names, session).await?;
            return Ok(LogSide::NotWanted);
        }
        if !self.server.logical {
            let reason = format!(
                "wal_level is `{}`: run ALTER SYSTEM SET wal_level = logical and restart Postgres (on a managed service, set rds.logical_replication, cloudsql.logical_decoding or the like)",
                self.server.wal_level
            );
            return self.unavailable(Interruption::Refused(reason));
        }
        match slot::examine(self.options, self.names, session, unusable).await {
            Ok(Log::From(confirmed)) => Ok(LogSide::From(confirmed)),
            Ok(Log::None) => Ok(LogSide::Making(slot::make(
                self.options,
                self.names,
                self.server,
            ))),
            Err(error) if cannot_be_had(&error) => self.unavailable(error),
            Err(error) => Err(error),
        }
    }

    /// Without logical replication there is the table, unless the operator wants the log.
    fn unavailable(&self, error: Interruption) -> Result<LogSide, Interruption> {
        if self.options.source == SourceKind::Wal {
            return Err(error);
        }
        let reason = match error.meaning() {
            crate::relay::error::Meaning::NeedsPerson(text) => text,
            _ => error.full(),
        };
        tracing::warn!(
            "no logical replication: {reason}; reads the table only, which is slower to notice new events (source = \"poll\" says that this is meant)"
        );
        Ok(LogSide::Unavailable {
            reason,
            tried: Instant::now(),
        })
    }

    /// Takes note of what has come of the work on the log.
    async fn attend(&self, log: LogSide, pipeline: &mut Pipeline) -> Result<LogSide, Interruption> {
        match log {
            LogSide::Making(task) if task.is_finished() => match task.await {
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
            LogSide::Advancing(task) if task.is_finished() => {
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
            LogSide::Unavailable { tried, .. } if tried.elapsed() > TRY_AGAIN => {
                self.look(pipeline, false).await
            }
            other => Ok(other),
        }
    }

    /// Bytes of log after the position.
    async fn behind(&self, pipeline: &mut Pipeline) -> Result<u64, Interruption> {
        let log = pipeline.settled().log;
        Ok(slot::insert_position(pipeline.connection())
            .await?
            .0
            .saturating_sub(log.0))
    }

    /// A stream that starts at `confirmed` may follow if everything before that is published, and nothing is left half read.
    fn may_stream(&self, confirmed: Lsn, behind: bool, pipeline: &Pipeline) -> bool {
        let position = pipeline.settled();
        let covered = position.window.is_none() && position.log >= confirmed;
        covered && (!behind || self.options.source == SourceKind::Wal)
    }

    /// Streams the log. Returns the bytes of log that are not read yet, once the table is the faster source.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`].
    pub(super) async fn stream(&self, pipeline: &mut Pipeline) -> Result<u64, Stop> {
        let application = self.options.database.application_name("relay stream");
        let LogNames { slot, publication } = self.names;
        let from = pipeline.settled().log;
        self.observer
            .pulse()
            .step("asking the server to stream the log");
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
            .shape
            .log_only()
            .map(|reason| format!("streams the log alone: {reason}"));
        pipeline.reads(
            Reading::Wal,
            alone.unwrap_or_else(|| "streams the log".into()),
        );
        tracing::info!(slot, %from, "streams the log");
        pipeline.stream_started(status);
        let mut source = WalSource::new(reader, self.options, self.shape);
        let leave_when_behind =
            self.options.source == SourceKind::Auto && self.shape.log_only().is_none();
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

impl LogSide {
    /// Why the table is read.
    fn reason(&self, behind: bool) -> String {
        match self {
            Self::NotWanted => "source is poll".into(),
            Self::Unavailable { reason, .. } => format!("no logical replication: {reason}"),
            Self::Making(_) => "the slot is being made".into(),
            Self::From(_) if behind => "behind, which the table is faster for".into(),
            Self::From(_) => "the log after the slot's start is not covered yet".into(),
            Self::Advancing(_) => "the slot is being advanced".into(),
        }
    }
}

/// Whether it says that logical replication cannot be had here: a publication that was altered, no privilege (insufficient_privilege), no slot left
/// (configuration_limit_exceeded), no logical log (object_not_in_prerequisite_state).
fn cannot_be_had(error: &Interruption) -> bool {
    matches!(error, Interruption::PublicationUnfit(_))
        || matches!(error.code().as_deref(), Some("42501" | "53400" | "55000"))
}
