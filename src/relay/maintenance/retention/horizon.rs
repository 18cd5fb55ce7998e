//! Horizon of retention: every relay has published all transactions below it. Decided from the
//! table of relays.

use std::time::Duration;

use crate::relay::position::{Identity, Snapshot};

/// A relay in the table of relays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registered {
    pub(super) name: String,
    /// All events of the transactions that it sees are published. `None` if the relay has not
    /// started yet.
    pub(super) seen: Option<Snapshot>,
    /// The same for the position that an operator has moved the relay to, if there is one. The
    /// inner value is `None` if that position cannot be read.
    pub(super) moved_to: Option<Option<Snapshot>>,
    /// The database that these snapshots belong to.
    pub(super) identity: Option<Identity>,
    /// Time since the relay last reported.
    pub(super) silent: Duration,
    /// The `seq` of rows that let the relay recognize its database.
    pub(super) witnesses: Vec<i64>,
}

/// Bounds that the relays set for deletes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Horizon<'r> {
    /// Every relay has published every transaction below this one.
    pub(super) below: u64,
    /// The relay that determines `below`, and the reason. `None` without relays.
    pub(super) held_by: Option<(&'r Registered, &'static str)>,
    pub(super) witnesses: Vec<i64>,
}

impl<'r> Horizon<'r> {
    /// Returns the bounds that these relays set in the database `here`.
    pub(super) fn of(relays: &'r [Registered], here: &Identity) -> Self {
        let each = relays
            .iter()
            .map(|relay| (relay.published_below(here), relay));
        let lowest = each.min_by_key(|((below, _), _)| *below);
        Self {
            // Without a relay, nothing is published.
            below: lowest.map_or(0, |((below, _), _)| below),
            held_by: lowest.map(|((_, why), relay)| (relay, why)),
            witnesses: relays
                .iter()
                .flat_map(|relay| relay.witnesses.iter().copied())
                .collect(),
        }
    }
}

impl Registered {
    /// Returns the transaction below which the relay has published everything, and the reason why
    /// it is not higher.
    fn published_below(&self, here: &Identity) -> (u64, &'static str) {
        // On another timeline, transaction ids refer to other transactions. The relay checks this
        // itself at its start.
        if self
            .identity
            .as_ref()
            .is_some_and(|identity| identity != here)
        {
            return (
                0,
                "has its position in another database, or in this one before a failover",
            );
        }
        let below = |snapshot: &Option<Snapshot>| snapshot.as_ref().map_or(0, Snapshot::xmin);
        match (below(&self.seen), self.moved_to.as_ref().map(below)) {
            (seen, Some(moved)) if moved < seen => (moved, "was moved back"),
            (0, _) => (0, "has not published anything yet"),
            (seen, _) => (seen, "has not published more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn here() -> Identity {
        Identity {
            system: "1".into(),
            database: 2,
            timeline: 1,
        }
    }

    fn relay(seen: Option<Snapshot>, moved_to: Option<Option<Snapshot>>) -> Registered {
        Registered {
            name: "a".into(),
            seen,
            moved_to,
            identity: Some(here()),
            silent: Duration::ZERO,
            witnesses: vec![7],
        }
    }

    fn snapshots() -> impl Strategy<Value = Snapshot> {
        (
            3u64..40,
            0u64..20,
            proptest::collection::btree_set(0u64..20, 0..5),
        )
            .prop_map(|(xmin, span, open)| {
                let open: Vec<String> = open
                    .iter()
                    .filter(|xid| **xid < span)
                    .map(|xid| (xmin + xid).to_string())
                    .collect();
                format!("{xmin}:{}:{}", xmin + span, open.join(","))
                    .parse()
                    .expect("a snapshot")
            })
    }

    proptest! {
        #[test]
        fn nothing_is_deleted_that_a_relay_has_not_published_or_was_moved_back_to(
            relays in proptest::collection::vec(
                (
                    proptest::option::of(snapshots()),
                    proptest::option::of(proptest::option::of(snapshots())),
                ),
                0..5,
            ),
        ) {
            let relays: Vec<_> = relays
                .into_iter()
                .map(|(seen, moved_to)| relay(seen, moved_to))
                .collect();
            let horizon = Horizon::of(&relays, &here());
            for xid in 3..horizon.below {
                for relay in &relays {
                    prop_assert!(relay.seen.as_ref().is_some_and(|seen| seen.sees(xid)));
                    prop_assert!(
                        relay.moved_to.as_ref().is_none_or(|moved| moved
                            .as_ref()
                            .is_some_and(|moved| moved.sees(xid)))
                    );
                }
            }
            prop_assert!(!relays.is_empty() || horizon.below == 0);
        }
    }

    #[test]
    fn a_relay_that_stands_in_the_way_is_named_with_the_reason() {
        let seen = |text: &str| Some(text.parse::<Snapshot>().expect("a snapshot"));
        let ahead = relay(seen("90:90:"), None);
        let foreign = Registered {
            name: "b".into(),
            identity: Some(Identity {
                timeline: 2,
                ..here()
            }),
            ..ahead.clone()
        };
        let moved = Registered {
            name: "c".into(),
            moved_to: Some(seen("20:20:")),
            ..ahead.clone()
        };
        let new = Registered {
            name: "d".into(),
            ..relay(None, None)
        };
        let held = |relays: &[Registered]| {
            let horizon = Horizon::of(relays, &here());
            let (by, why) = horizon.held_by.expect("one");
            (horizon.below, by.name.clone(), why)
        };
        assert_eq!(
            held(std::slice::from_ref(&ahead)),
            (90, "a".into(), "has not published more")
        );
        assert_eq!(
            held(&[ahead.clone(), moved]),
            (20, "c".into(), "was moved back")
        );
        assert_eq!(
            held(&[ahead.clone(), new]),
            (0, "d".into(), "has not published anything yet")
        );
        assert_eq!(held(&[ahead, foreign]).1, "b");
    }
}
