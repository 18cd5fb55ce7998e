//! Places at which a test ends the process as `kill -9` would. Compiled into debug builds alone.
//!
//! `TIDINGS_TEST_DIE_AT=kafka-committed:3` ends it the third time that it comes to that place.

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

/// Ends the process if a test wants it to end here.
#[cfg(debug_assertions)]
pub(crate) fn reached(step: Step) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    };
    static WANTED: LazyLock<Option<(String, AtomicU32)>> = LazyLock::new(|| {
        let text = std::env::var("TIDINGS_TEST_DIE_AT").ok()?;
        let (word, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some((word.to_owned(), AtomicU32::new(times.parse().unwrap_or(1))))
    });
    if let Some((word, times)) = &*WANTED
        && word == step.word()
        && times.fetch_sub(1, Ordering::SeqCst) == 1
    {
        // No handler runs, no buffer is flushed, no connection is closed in order.
        std::process::abort();
    }
}

#[cfg(not(debug_assertions))]
pub(crate) fn reached(_: Step) {}
