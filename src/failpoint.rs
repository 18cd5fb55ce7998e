//! Failpoints at which a test ends the process as `kill -9` would. Compiled only into debug builds.
//!
//! `TIDINGS_TEST_DIE_AT=kafka-committed:3` ends the process the third time it reaches that
//! failpoint. `TIDINGS_TEST_HANG_IN=commit_transaction:3` makes the third such call of the Kafka
//! client hang forever.

/// Step of a protocol after which a crash must neither lose nor duplicate an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(all(feature = "relay", feature = "subscriber")), allow(dead_code))]
pub(crate) enum Step {
    // === relay ===
    /// Earlier producers are fenced off. The position has not been read yet.
    Fenced,
    /// The position's record is sent, and its transaction is open.
    PositionSent,
    /// The transaction is committed, but this process has not received the result.
    KafkaCommitted,
    /// The position's copy is stored in Postgres, and the log is not confirmed.
    Mirrored,
    /// The log is confirmed.
    Confirmed,
    /// A window of the table is open, and none of its rows has been sent.
    WindowOpened,
    /// A window of the table has been sent, but not its end.
    WindowSent,
    /// The slot is created, and the position is not past its start.
    SlotMade,
    /// The slot is advanced, and the stream has not started.
    SlotAdvanced,
    /// Parked events are stored, and the position has not passed them.
    Parked,
    /// Parked events have been sent, and their transaction is open.
    ReleaseSent,
    /// They are durable in Kafka and still in the table of parked events.
    ReleaseCommitted,
    /// They are deleted from that table, and the position still contains them.
    Released,
    /// Due events are in the outbox, but this process has not received the result.
    ScheduledMoved,
    // === subscriber ===
    /// A handler has had its effect, and the transaction is open.
    EffectMade,
    /// The effect is committed, and the offset is not.
    EffectCommitted,
}

impl Step {
    #[cfg(debug_assertions)]
    fn word(self) -> &'static str {
        match self {
            Self::Fenced => "fenced",
            Self::PositionSent => "position-sent",
            Self::KafkaCommitted => "kafka-committed",
            Self::Mirrored => "mirrored",
            Self::Confirmed => "confirmed",
            Self::WindowOpened => "window-opened",
            Self::WindowSent => "window-sent",
            Self::SlotMade => "slot-made",
            Self::SlotAdvanced => "slot-advanced",
            Self::Parked => "parked",
            Self::ReleaseSent => "release-sent",
            Self::ReleaseCommitted => "release-committed",
            Self::Released => "released",
            Self::ScheduledMoved => "scheduled-moved",
            Self::EffectMade => "effect-made",
            Self::EffectCommitted => "effect-committed",
        }
    }
}

/// Place and count from an environment variable: `place:3`.
#[cfg(debug_assertions)]
struct Wanted {
    place: String,
    times: std::sync::atomic::AtomicU32,
}

#[cfg(debug_assertions)]
impl Wanted {
    fn of(variable: &str) -> Option<Self> {
        let text = std::env::var(variable).ok()?;
        let (place, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some(Self {
            place: place.to_owned(),
            times: times.parse().unwrap_or(1).into(),
        })
    }

    fn is_now(&self, place: &str) -> bool {
        place == self.place && self.times.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) == 1
    }
}

/// Ends the process if a test has selected this step.
#[cfg(debug_assertions)]
pub(crate) fn reached(step: Step) {
    static WANTED: std::sync::LazyLock<Option<Wanted>> =
        std::sync::LazyLock::new(|| Wanted::of("TIDINGS_TEST_DIE_AT"));
    if WANTED
        .as_ref()
        .is_some_and(|wanted| wanted.is_now(step.word()))
    {
        // `abort` runs no handlers, flushes no buffers and closes no connections, as with
        // `kill -9`.
        #[expect(clippy::disallowed_methods, reason = "simulates a crash in a test")]
        std::process::abort();
    }
}

#[cfg(not(debug_assertions))]
pub(crate) fn reached(_: Step) {}

/// Blocks this thread forever if a test has selected this call of the Kafka client.
#[cfg(debug_assertions)]
pub(crate) fn called(call: &str) {
    static WANTED: std::sync::LazyLock<Option<Wanted>> =
        std::sync::LazyLock::new(|| Wanted::of("TIDINGS_TEST_HANG_IN"));
    if WANTED.as_ref().is_some_and(|wanted| wanted.is_now(call)) {
        loop {
            std::thread::park();
        }
    }
}

#[cfg(not(debug_assertions))]
pub(crate) fn called(_: &str) {}
