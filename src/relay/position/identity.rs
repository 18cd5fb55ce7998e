//! Identity of the database that a position belongs to. Another database has the same numbers and
//! other events.

use serde::{Deserialize, Serialize};

use crate::fnv::fnv1a;

/// A database: the scope of a position's transaction ids and log positions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// `pg_control_system()`: assigned once by initdb. Copies of the cluster keep it.
    pub(crate) system: String,
    /// OID of the database within the cluster. `drop database` and a restore change it.
    pub(crate) database: i64,
    /// Raised by each promotion of a standby and each restore to a point in time.
    pub(crate) timeline: i64,
}

/// Difference between the present database and the one that a position belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The same database.
    None,
    /// The same database, promoted or restored since.
    Timeline,
    /// Another database.
    Database,
}

impl Identity {
    /// Returns the difference between this identity and `now`.
    pub(crate) fn change(&self, now: &Self) -> Change {
        if self.system != now.system || self.database != now.database {
            Change::Database
        } else if self.timeline != now.timeline {
            Change::Timeline
        } else {
            Change::None
        }
    }

    /// Returns eight hexadecimal digits that distinguish relays of the same name on one Kafka
    /// cluster. The timeline is not included: a promoted standby continues its primary.
    pub(crate) fn mark(&self, schema: &str) -> String {
        let text = format!("{}/{}/{schema}", self.system, self.database);
        let hash = fnv1a(text.bytes());
        format!("{:08x}", (hash >> 32) as u32 ^ hash as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promotion_is_told_apart_from_another_database() {
        let ours = Identity {
            system: "7".into(),
            database: 5,
            timeline: 1,
        };
        assert_eq!(ours.change(&ours.clone()), Change::None);
        assert_eq!(
            ours.change(&Identity {
                timeline: 2,
                ..ours.clone()
            }),
            Change::Timeline
        );
        assert_eq!(
            ours.change(&Identity {
                database: 6,
                ..ours.clone()
            }),
            Change::Database
        );
        assert_eq!(
            ours.mark("tidings"),
            Identity {
                timeline: 2,
                ..ours.clone()
            }
            .mark("tidings")
        );
        assert_ne!(
            ours.mark("tidings"),
            Identity {
                database: 6,
                ..ours.clone()
            }
            .mark("tidings")
        );
        assert_ne!(ours.mark("tidings"), ours.mark("other"));
    }
}
