//! Which transactions a reader sees: Postgres's `pg_snapshot`, evaluated here.

use std::{fmt, str::FromStr};

/// The first transaction id that is not reserved (`FirstNormalTransactionId`): a snapshot that ends there sees nothing.
const FIRST_NORMAL: u64 = 3;

/// A `pg_snapshot`: which transactions had ended, and so are seen, when it was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Everything below has ended.
    xmin: u64,
    /// Nothing from here on has.
    xmax: u64,
    /// What had not ended in between, ascending.
    in_progress: Vec<u64>,
}

/// Text that is no `pg_snapshot`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a snapshot: expected xmin:xmax:xid,xid,… as pg_current_snapshot() writes it")]
pub(crate) struct SnapshotError(String);

impl Snapshot {
    /// Sees no transaction at all.
    pub(crate) fn of_nothing() -> Self {
        Self {
            xmin: FIRST_NORMAL,
            xmax: FIRST_NORMAL,
            in_progress: Vec::new(),
        }
    }

    /// Whether the transaction had ended.
    pub(crate) fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }

    /// Sees what this one sees of the transactions below `first`.
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

    /// Sees every transaction below `first`.
    pub(crate) fn of_all_below(first: u64) -> Self {
        let first = first.max(FIRST_NORMAL);
        Self {
            xmin: first,
            xmax: first,
            in_progress: Vec::new(),
        }
    }

    /// Every transaction below it had ended.
    pub(crate) fn xmin(&self) -> u64 {
        self.xmin
    }

    /// No transaction from it on had ended.
    pub(crate) fn xmax(&self) -> u64 {
        self.xmax
    }

    /// The transactions below [`xmax`](Self::xmax) that had not ended.
    pub(crate) fn in_progress(&self) -> &[u64] {
        &self.in_progress
    }

    /// The whole id of a transaction of which the log tells 32 bits: the nearest one to this snapshot's end. Ids in use at one time lie
    /// within two thousand million of each other (PostgreSQL manual, "Preventing Transaction ID Wraparound Failures").
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
            // A snapshot that a new slot exports may have its xmin above its xmax, which the server writes and refuses to read.
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
