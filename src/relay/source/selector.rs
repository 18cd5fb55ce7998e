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

use std::time::Duration;

use tokio::{sync::Notify, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    notify,
    pages::UNCHECKED_TEXT,
    parked::release,
    slot::{self, Log},
    table::{TableSource, WindowEnd},
    wal::{BEHIND_BYTES, StreamEnd, WalSource},
};
use crate::{
    failpoint::{self, Step},
    postgres::{Lsn, replication::Connection},
    relay::{
        RelayOptions, SourceKind,
        error::Interruption,
        leadership::relay_store::Reading,
        monitor::metrics::Observer,
        pipeline::{checkpoint::Books, publisher::Forwarder},
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
pub(crate) struct Drive<'s> {
    pub(crate) options: &'s RelayOptions,
    pub(crate) server: &'s Server,
    pub(crate) names: &'s LogNames,
    pub(crate) shape: &'s Shape,
    /// The operator has moved the position.
    pub(crate) moved: bool,
    pub(crate) observer: &'s Observer,
    pub(crate) shutdown: &'s CancellationToken,
    /// The slot's log could not be decoded in the last session.
    pub(crate) log_unusable: bool,
    /// The server did not stream the log in the last session, although it accepted the connection.
    pub(crate) log_silent: bool,
}

impl Drive<'_> {
    /// Publishes until `shutdown`, which is no error; what was sent may then still be under way.
    ///
    /// # Errors
    /// Whatever interrupts it.
    pub(crate) async fn run(
        &self,
        forwarder: &mut Forwarder,
        books: &mut Books,
    ) -> Result<(), Interruption> {
        if let Some(reason) = self.shape.log_only() {
            return self.follow(reason, forwarder, books).await;
        }
        // What was decided while no relay ran comes first: it may be what makes room for more.
        if !release(forwarder, books, self.shutdown).await? {
            return Ok(());
        }
        let mut log = self.look(books, self.log_unusable).await?;
        if self.log_silent && self.options.source == SourceKind::Auto {
            log = LogSide::Unavailable {
                reason: "the server accepts a stream and does not answer".into(),
                tried: Instant::now(),
            };
        }
        let mut table = TableSource::new(self.options, self.shape);
        let mut behind = self.behind(books).await? > BEHIND_BYTES;
        let news = notify::listen(self.options);
        loop {
            log = self.attend(log, books).await?;
            if let LogSide::From(confirmed) = log
                && self.may_stream(confirmed, behind, books)
            {
                let lag = books.progress.settled().log.0 - confirmed.0;
                if lag > ADVANCE_BYTES {
                    // Only what is safe: until then the table is read on.
                    let safe = books.safe().0.log;
                    if safe > confirmed {
                        tracing::info!(
                            bytes = lag,
                            "has the slot forget the log that the table stood in for"
                        );
                        log = LogSide::Advancing(slot::advance(self.options, self.names, safe));
                    }
                } else {
                    match self.stream(forwarder, books).await? {
                        StreamEnd::Shutdown => return Ok(()),
                        StreamEnd::Behind(bytes) => {
                            books.reads(
                                Reading::Table,
                                format!(
                                    "behind by {} MB of log, which the table is faster for",
                                    bytes >> 20
                                ),
                            );
                            behind = true;
                            // The stream's connection is gone, what it had confirmed is not.
                            log = self.look(books, false).await?;
                        }
                    }
                    continue;
                }
            }
            books.reads(Reading::Table, log.reason(behind));
            self.observer.pulse().step("reading the table");
            match table
                .window(forwarder, books, self.observer, self.shutdown)
                .await?
            {
                WindowEnd::Shutdown => return Ok(()),
                WindowEnd::Done(events) => {
                    behind &= events >= LITTLE;
                    books.cut_if_wanted(forwarder, events < LITTLE).await?;
                    if events == 0 {
                        books.caught_up();
                    }
                    if events == 0 && !self.wait(forwarder, books, &news).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// What can be had of the log now.
    async fn look(&self, books: &mut Books, unusable: bool) -> Result<LogSide, Interruption> {
        let session = books.ledger.session();
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
    async fn attend(&self, log: LogSide, books: &mut Books) -> Result<LogSide, Interruption> {
        match log {
            LogSide::Making(task) if task.is_finished() => match task.await {
                Ok(Ok(())) => {
                    failpoint::reached(Step::SlotMade);
                    self.look(books, false).await
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
                self.look(books, false).await
            }
            LogSide::Unavailable { tried, .. } if tried.elapsed() > TRY_AGAIN => {
                self.look(books, false).await
            }
            other => Ok(other),
        }
    }

    /// Bytes of log after the position.
    async fn behind(&self, books: &mut Books) -> Result<u64, Interruption> {
        let log = books.progress.settled().log;
        Ok(slot::insert_position(books.ledger.session())
            .await?
            .0
            .saturating_sub(log.0))
    }

    /// A stream that starts at `confirmed` may follow if everything before that is published, and nothing is left half read.
    fn may_stream(&self, confirmed: Lsn, behind: bool, books: &Books) -> bool {
        let position = books.progress.settled();
        let covered = position.window.is_none() && position.log >= confirmed;
        covered && (!behind || self.options.source == SourceKind::Wal)
    }

    pub(crate) async fn stream(
        &self,
        forwarder: &mut Forwarder,
        books: &mut Books,
    ) -> Result<StreamEnd, Interruption> {
        let application = self.options.database.application_name("relay stream");
        let LogNames { slot, publication } = self.names;
        let from = books.progress.settled().log;
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
            () = self.shutdown.cancelled() => return Ok(StreamEnd::Shutdown),
        };
        let alone = self
            .shape
            .log_only()
            .map(|reason| format!("streams the log alone: {reason}"));
        books.reads(
            Reading::Wal,
            alone.unwrap_or_else(|| "streams the log".into()),
        );
        tracing::info!(slot, %from, "streams the log");
        books.stream_begins(status);
        let mut source = WalSource::new(reader, self.options, self.shape);
        let leave_when_behind =
            self.options.source == SourceKind::Auto && self.shape.log_only().is_none();
        let end = source
            .run(
                forwarder,
                books,
                self.observer,
                leave_when_behind,
                self.shutdown,
            )
            .await?;
        books.stream_ends().await;
        Ok(end)
    }

    /// Waits until there may be something new; false if `shutdown` came first.
    async fn wait(
        &self,
        forwarder: &mut Forwarder,
        books: &mut Books,
        news: &Notify,
    ) -> Result<bool, Interruption> {
        let lost = books.lost().clone();
        tokio::select! {
            () = self.shutdown.cancelled() => return Ok(false),
            () = lost.cancelled() => return Err(Interruption::LeaseLost),
            () = books.due() => {
                books.store(forwarder).await?;
                return release(forwarder, books, self.shutdown).await;
            }
            () = news.notified() => {}
            () = tokio::time::sleep(POLL) => {}
        }
        Ok(true)
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
