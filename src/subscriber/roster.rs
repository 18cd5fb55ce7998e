//! Which event types other instances of the group handle, and which of them an instance must not skip. Pure.
//!
//! During a deployment, members of two versions share the partitions. A member that meets a type without a handler cannot know by
//! itself whether the type concerns its group. It asks the roster: a type is *held*, and not skipped, if
//!
//! - an instance that runs handles it; or
//! - an instance of a newer version handles it that ran within [`RECENT`]: it restarts, or is rolled back and comes again; or
//! - an instance of any version handles it that ran within [`RECENT`] and did not stop in order: it may have crashed; or
//! - any instance of the last week handles it, if the subscriber waits for newer code.
//!
//! A handler that a version removes is skipped once the last instance that has it is stopped in order.

use std::collections::HashSet;
use std::time::Duration;

/// An instance whose heartbeat is older does not run: six heartbeats.
pub(super) const LIVE: Duration = Duration::from_secs(60);

/// An instance that was seen within this time may come back: longer than a restart or a roll back takes.
pub(super) const RECENT: Duration = Duration::from_secs(3_600);

/// Another instance of the group.
#[derive(Clone, Debug)]
pub(super) struct Other {
    pub(super) types: Vec<String>,
    /// Its version was first seen after this instance's.
    pub(super) is_newer: bool,
    /// Time since its last heartbeat.
    pub(super) seen: Duration,
    /// It stopped in order.
    pub(super) is_stopped: bool,
}

impl Other {
    pub(super) fn is_live(&self) -> bool {
        !self.is_stopped && self.seen <= LIVE
    }

    fn counts(&self, waits_for_newer_code: bool) -> bool {
        waits_for_newer_code || self.is_live() || self.seen <= RECENT && (self.is_newer || !self.is_stopped)
    }
}

/// The types that must not be skipped.
pub(super) fn held_types(others: Vec<Other>, waits_for_newer_code: bool) -> HashSet<String> {
    others.into_iter().filter(|other| other.counts(waits_for_newer_code)).flat_map(|other| other.types).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(is_newer: bool, seen: u64, is_stopped: bool) -> Other {
        Other { types: vec!["New".into()], is_newer, seen: Duration::from_secs(seen), is_stopped }
    }

    #[test]
    fn a_type_is_held_while_an_instance_that_handles_it_runs_or_may_come_back() {
        for (is_newer, seen, is_stopped, held) in [
            (true, 1, false, true),
            (false, 1, false, true),
            (true, 1, true, true),
            (true, 3_600, true, true),
            (true, 3_601, true, false),
            (true, 3_600, false, true),
            (true, 3_601, false, false),
            (false, 1, true, false),
            (false, 61, false, true),
            (false, 3_601, false, false),
        ] {
            let one = other(is_newer, seen, is_stopped);
            assert_eq!(held_types(vec![one.clone()], false).contains("New"), held, "{one:?}");
            assert!(held_types(vec![one], true).contains("New"), "it waits for newer code");
        }
        assert!(held_types(Vec::new(), true).is_empty());
    }
}
