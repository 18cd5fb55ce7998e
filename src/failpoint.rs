//! Places at which a test ends the process as `kill -9` would. Compiled into debug builds alone.
//!
//! `TIDINGS_TEST_DIE_AT=kafka-committed:3` ends it the third time that it comes to that place. `TIDINGS_TEST_HANG_IN=commit_transaction:3`
//! has the third such call of the Kafka client never return.

/// A step of a protocol, after which a crash must cost nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(all(feature = "relay", feature = "subscriber")), allow(dead_code))]
pub(crate) enum Step {
    // === of a relay ===
    /// Earlier producers are fenced off; the position is not read yet.
    Fenced,
    /// The position's record is sent, its transaction is open.
    PositionSent,
    /// The transaction is committed, nobody here knows yet.
    KafkaCommitted,
    /// The position's copy is in Postgres, the log is not confirmed.
    Mirrored,
    /// The log is confirmed.
    Confirmed,
    /// A window of the table is open, none of its rows is sent.
    WindowOpened,
    /// A window of the table is sent, its end is not.
    WindowSent,
    /// The slot is made, the position is not beyond its start.
    SlotMade,
    /// The slot is advanced, the stream has not begun.
    SlotAdvanced,
    /// What was set aside is stored, the position has not passed it.
    Parked,
    /// Parked events are sent, their transaction is open.
    ReleaseSent,
    /// They are durable and still in the table of parked events.
    ReleaseCommitted,
    /// They are off that table, the position still names them.
    Released,
    /// Events that were due are in the outbox, nobody here knows yet.
    ScheduledMoved,
    // === of a subscriber ===
    /// A handler has had its effect, the transaction is open.
    EffectMade,
    /// The effect is committed, the offset is not.
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

/// A place and the time at which a test wants something there: `place:3` in a variable of the environment.
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

/// Ends the process if a test wants it to end here.
#[cfg(debug_assertions)]
pub(crate) fn reached(step: Step) {
    static WANTED: std::sync::LazyLock<Option<Wanted>> =
        std::sync::LazyLock::new(|| Wanted::of("TIDINGS_TEST_DIE_AT"));
    if WANTED
        .as_ref()
        .is_some_and(|wanted| wanted.is_now(step.word()))
    {
        // No handler runs, no buffer is flushed, no connection is closed in order.
        std::process::abort();
    }
}

#[cfg(not(debug_assertions))]
pub(crate) fn reached(_: Step) {}

/// Blocks this thread for ever if a test wants the Kafka client to hang in this call.
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
