//! Up to which transaction every relay has published everything. Decided here, on what the table of relays says.

use std::time::Duration;

use crate::relay::position::{Identity, Snapshot};

/// What the table of relays says of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registered {
    pub(super) name: String,
    /// Every event of a transaction that it sees is published; none if the relay has not begun.
    pub(super) seen: Option<Snapshot>,
    /// The same of where an operator has moved it to, if one has; none within if that cannot be read.
    pub(super) moved_to: Option<Option<Snapshot>>,
    /// What these are snapshots of.
    pub(super) identity: Option<Identity>,
    /// Since it was last heard of.
    pub(super) silent: Duration,
    /// The `seq` of rows that prove to it that this is still its database.
    pub(super) witnesses: Vec<i64>,
}

/// What may be deleted, as far as relays are concerned.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Horizon<'r> {
    /// Every relay has published every transaction below it.
    pub(super) below: u64,
    /// The relay that keeps it from being higher, and why; none without relays.
    pub(super) held_by: Option<(&'r Registered, &'static str)>,
    pub(super) witnesses: Vec<i64>,
}

impl<'r> Horizon<'r> {
    /// What these relays leave, in the database `here`.
    pub(super) fn of(relays: &'r [Registered], here: &Identity) -> Self {
        let each = relays
            .iter()
            .map(|relay| (relay.published_below(here), relay));
        let lowest = each.min_by_key(|((below, _), _)| *below);
        Self {
            // Without a relay nothing is published.
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
    /// It has published every transaction below this one, and why not more.
    fn published_below(&self, here: &Identity) -> (u64, &'static str) {
        // On another timeline transaction ids mean other transactions: it looks at that itself when it starts.
        if self
            .identity
            .as_ref()
            .is_some_and(|identity| identity != here)
        {
            return (
                0,
                "has its position in another database, or in this one before a fail-over",
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
        fn nothing_is_deleted_that_a_relay_has_not_published_or_was_moved_back_to(relays in proptest::collection::vec((proptest::option::of(snapshots()), proptest::option::of(proptest::option::of(snapshots()))), 0..5)) {
            let relays: Vec<_> = relays.into_iter().map(|(seen, moved_to)| relay(seen, moved_to)).collect();
            let horizon = Horizon::of(&relays, &here());
            for xid in 3..horizon.below {
                for relay in &relays {
                    prop_assert!(relay.seen.as_ref().is_some_and(|seen| seen.sees(xid)));
                    prop_assert!(relay.moved_to.as_ref().is_none_or(|moved| moved.as_ref().is_some_and(|moved| moved.sees(xid))));
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
