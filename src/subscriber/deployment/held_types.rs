//! Event types that an instance must not skip, because other instances of its group handle them.
//! Pure.
//!
//! During a deployment, members of two versions share the partitions. If a member reads an event
//! whose type has no handler, its own code does not show whether another version of its group
//! handles the type. It therefore checks the registered instances. A type is *held*, and not
//! skipped, in these cases:
//!
//! - A running instance handles it.
//! - An instance of a newer version handles it, and ran within [`RECENT`]. It may be restarting, or
//!   may be deployed again after a rollback.
//! - An instance of any version handles it, ran within [`RECENT`] and was not stopped cleanly. It
//!   may have crashed.
//! - Any instance of the last week handles it, and the subscriber waits for newer code.
//!
//! If a version removes a handler, its type is skipped as soon as the last instance with that
//! handler has stopped cleanly.

use std::collections::HashSet;
use std::time::Duration;

/// Maximum age of the heartbeat of a running instance: six heartbeats.
pub(crate) const LIVE: Duration = Duration::from_secs(60);

/// Time within which a stopped instance may return: longer than a restart or a rollback takes.
pub(crate) const RECENT: Duration = Duration::from_secs(3_600);

/// Another instance of the group.
#[derive(Clone, Debug)]
pub(crate) struct Other {
    pub(crate) types: Vec<String>,
    /// True if its version was first registered after the version of this instance.
    pub(crate) is_newer: bool,
    /// Time since its last heartbeat.
    pub(crate) seen: Duration,
    /// True if it stopped cleanly.
    pub(crate) is_stopped: bool,
}

impl Other {
    pub(crate) fn is_live(&self) -> bool {
        !self.is_stopped && self.seen <= LIVE
    }

    fn counts(&self, waits_for_newer_code: bool) -> bool {
        waits_for_newer_code
            || self.is_live()
            || self.seen <= RECENT && (self.is_newer || !self.is_stopped)
    }
}

/// Returns the types that must not be skipped.
pub(crate) fn held_types(others: Vec<Other>, waits_for_newer_code: bool) -> HashSet<String> {
    others
        .into_iter()
        .filter(|other| other.counts(waits_for_newer_code))
        .flat_map(|other| other.types)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(is_newer: bool, seen: u64, is_stopped: bool) -> Other {
        Other {
            types: vec!["New".into()],
            is_newer,
            seen: Duration::from_secs(seen),
            is_stopped,
        }
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
            assert_eq!(
                held_types(vec![one.clone()], false).contains("New"),
                held,
                "{one:?}"
            );
            assert!(
                held_types(vec![one], true).contains("New"),
                "it waits for newer code"
            );
        }
        assert!(held_types(Vec::new(), true).is_empty());
    }
}
