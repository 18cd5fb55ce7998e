//! Snapshots of Postgres (`pg_snapshot`), evaluated in the relay.

use std::{fmt, str::FromStr};

/// The first transaction id that is not reserved (`FirstNormalTransactionId`). A snapshot that ends
/// there sees nothing.
const FIRST_NORMAL: u64 = 3;

/// A `pg_snapshot`: the transactions that had ended, and are therefore seen, when it was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Every transaction below this id had ended.
    xmin: u64,
    /// No transaction from this id on had ended.
    xmax: u64,
    /// Transactions in between that had not ended, ascending.
    in_progress: Vec<u64>,
}

/// Text that is not a `pg_snapshot`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a snapshot: expected xmin:xmax:xid,xid,… as pg_current_snapshot() writes it")]
pub(crate) struct SnapshotError(String);

impl Snapshot {
    /// Returns a snapshot that sees no transaction.
    pub(crate) fn of_nothing() -> Self {
        Self {
            xmin: FIRST_NORMAL,
            xmax: FIRST_NORMAL,
            in_progress: Vec::new(),
        }
    }

    /// Returns `true` if the transaction had ended.
    pub(crate) fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }

    /// Returns a snapshot that sees the same transactions below `first`, and none from there on.
    pub(crate) fn below(&self, first: u64) -> Self {
        let xmax = self.xmax.min(first);
        let in_progress = self
            .in_progress
            .iter()
            .copied()
            .filter(|xid| *xid < xmax)
            .collect();
        Self {
            xmin: self.xmin.min(xmax),
            xmax,
            in_progress,
        }
    }

    /// Returns a snapshot that sees every transaction below `first`.
    pub(crate) fn of_all_below(first: u64) -> Self {
        let first = first.max(FIRST_NORMAL);
        Self {
            xmin: first,
            xmax: first,
            in_progress: Vec::new(),
        }
    }

    /// Returns the id below which every transaction had ended.
    pub(crate) fn xmin(&self) -> u64 {
        self.xmin
    }

    /// Returns the lowest id such that neither it nor any later transaction had ended.
    pub(crate) fn xmax(&self) -> u64 {
        self.xmax
    }

    /// Returns the transactions below [`xmax`](Self::xmax) that had not ended.
    pub(crate) fn in_progress(&self) -> &[u64] {
        &self.in_progress
    }

    /// Returns the full id of a transaction from the 32 bits in the log: the one nearest to this
    /// snapshot's end. All ids in use at one time lie within two billion of each other (PostgreSQL
    /// manual, "Preventing Transaction ID Wraparound Failures").
    pub(crate) fn widen(&self, xid: u32) -> u64 {
        let distance = xid.wrapping_sub(self.xmax as u32).cast_signed();
        self.xmax.saturating_add_signed(i64::from(distance))
    }
}

// === impl FromStr, Display, serde ===

impl FromStr for Snapshot {
    type Err = SnapshotError;

    fn from_str(text: &str) -> Result<Self, SnapshotError> {
        let parse = || {
            let mut parts = text.splitn(3, ':');
            let (xmin, xmax) = (
                parts.next()?.parse().ok()?,
                parts.next()?.parse::<u64>().ok()?,
            );
            let list = parts.next()?;
            let mut in_progress = list
                .split(',')
                .filter(|xid| !xid.is_empty())
                .map(|xid| xid.parse().ok())
                .collect::<Option<Vec<u64>>>()?;
            in_progress.sort_unstable();
            if xmax
                .max(xmin)
                .max(in_progress.last().copied().unwrap_or_default())
                >= super::xids::XID_MAX
            {
                return None;
            }
            // The snapshot that a new slot exports may have its xmin above its xmax. The server
            // writes such a snapshot and refuses to read it.
            Some(Self {
                xmin,
                xmax: xmax.max(xmin),
                in_progress,
            })
        };
        parse().ok_or_else(|| SnapshotError(text.to_owned()))
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (at, xid) in self.in_progress.iter().enumerate() {
            write!(f, "{}{xid}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl serde::Serialize for Snapshot {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Snapshot {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_had_ended() {
        let snapshot: Snapshot = "10:20:12,15".parse().expect("a snapshot");
        assert!(snapshot.sees(9) && snapshot.sees(10) && snapshot.sees(19));
        assert!(
            !snapshot.sees(12) && !snapshot.sees(15) && !snapshot.sees(20) && !snapshot.sees(21)
        );
        assert!(!Snapshot::of_nothing().sees(3));
        assert_eq!(snapshot.to_string(), "10:20:12,15");
        assert_eq!(
            "13929:13928:"
                .parse::<Snapshot>()
                .expect("put right")
                .to_string(),
            "13929:13929:"
        );
        assert!(
            "1:9223372036854775807:".parse::<Snapshot>().is_err()
                && "1:2:18446744073709551615".parse::<Snapshot>().is_err()
        );
        assert!("10:20".parse::<Snapshot>().is_err() && "a:b:".parse::<Snapshot>().is_err());
    }

    #[test]
    fn the_log_s_short_ids_are_widened_to_the_nearest_one() {
        let epoch = 5u64 << 32;
        let near_the_start: Snapshot = format!("{0}:{0}:", epoch + 10).parse().expect("a snapshot");
        assert_eq!(near_the_start.widen(12), epoch + 12);
        assert_eq!(near_the_start.widen(u32::MAX), epoch - 1);
        let near_the_end: Snapshot = format!("{0}:{0}:", epoch - 10).parse().expect("a snapshot");
        assert_eq!(near_the_end.widen(3), epoch + 3);
    }
}
