//! Kinds of faults with their weights, and the urn that a schedule draws from. Shared by the relay
//! and the subscriber histories.

use std::fmt;
use std::time::Duration;

use super::random::Random;
pub(crate) use super::words::Unusable;

/// Declares an enum of faults. Each entry has the variant, the command-line word, the weight and
/// the documentation. The calling module must import `faults`.
macro_rules! kinds {
    ($($kind:ident, $word:literal, $weight:literal, $doc:literal;)*) => {
        /// A kind of fault, named by a word of `--faults`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Kind { $(#[doc = $doc] $kind),* }

        impl faults::Fault for Kind {
            const TABLE: &'static [(Self, &'static str, u64)] =
                &[$((Self::$kind, $word, $weight)),*];
        }

        impl ::std::fmt::Display for Kind {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(faults::word(*self))
            }
        }

        impl ::std::str::FromStr for Kind {
            type Err = faults::Unusable;

            fn from_str(text: &str) -> Result<Self, faults::Unusable> {
                faults::parse(text)
            }
        }
    };
}
pub(crate) use kinds;

/// A kind of fault.
pub(crate) trait Fault: Copy + Eq + fmt::Display + 'static {
    /// Each kind, its word, and its weight relative to the other kinds.
    const TABLE: &'static [(Self, &'static str, u64)];
}

/// Returns the word of a kind.
pub(crate) fn word<K: Fault>(kind: K) -> &'static str {
    K::TABLE
        .iter()
        .find(|(known, ..)| *known == kind)
        .map_or("", |(_, word, _)| word)
}

/// Returns the kind of a word.
///
/// # Errors
///
/// Returns a message that lists all words if `text` is not one of them.
pub(crate) fn parse<K: Fault>(text: &str) -> Result<K, Unusable> {
    let known = || {
        K::TABLE
            .iter()
            .map(|(_, word, _)| *word)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let found = K::TABLE.iter().find(|(_, word, _)| *word == text);
    found
        .map(|(kind, ..)| *kind)
        .ok_or_else(|| Unusable::new(format!("`{text}` is not one of {}", known())))
}

/// Draws kinds without replacement. The urn holds each kind as often as its weight and is refilled
/// once it is empty.
#[derive(Clone, Debug)]
pub(crate) struct Urn<K> {
    all: Vec<K>,
    left: Vec<K>,
}

impl<K: Fault> Urn<K> {
    pub(crate) fn new(kinds: impl IntoIterator<Item = K>) -> Self {
        let weight = |kind| {
            K::TABLE
                .iter()
                .find(|(known, ..)| *known == kind)
                .map_or(0, |(.., weight)| *weight)
        };
        Self {
            all: kinds
                .into_iter()
                .flat_map(|kind| (0..weight(kind)).map(move |_| kind))
                .collect(),
            left: Vec::new(),
        }
    }

    /// Draws the next kind.
    pub(crate) fn draw(&mut self, random: &mut Random) -> K {
        if self.left.is_empty() {
            self.left.clone_from(&self.all);
        }
        let at = random.below(self.left.len() as u64) as usize;
        self.left.swap_remove(at)
    }
}

/// One step of a nemesis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step<K> {
    /// The pause before the step.
    pub(crate) after: Duration,
    pub(crate) kind: K,
    /// The duration of the fault, or zero if the fault is momentary.
    pub(crate) lasts: Duration,
    /// The number of the broker or process, modulo their count.
    pub(crate) which: usize,
    /// Whether a process is killed during the fault.
    pub(crate) kill_meanwhile: bool,
}

impl<K> Step<K> {
    /// Returns the time between the start of the fault and the kill.
    pub(crate) fn before_kill(&self) -> Duration {
        self.lasts * (1 + self.which as u32 % 7) / 8
    }
}

impl<K: fmt::Display> fmt::Display for Step<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            lasts,
            kill_meanwhile,
            ..
        } = self;
        write!(f, "{kind}")?;
        if !lasts.is_zero() {
            write!(
                f,
                " for {lasts:?}{}",
                if *kill_meanwhile { ", with a kill" } else { "" }
            )?;
        }
        Ok(())
    }
}
