//! The cover rule: the log position where a stream may take over after a read of the table.

use std::collections::VecDeque;

use super::Snapshot;
use crate::postgres::Lsn;

/// Maximum number of remembered pairs. Dropping the newest is safe: without a fitting pair, the
/// stream only waits longer. It can happen while one open transaction holds up all pairs.
const PAIRS_MAX: usize = 1_000;

/// Pairs of a log position and the end of a snapshot that was taken after it, in the order of their
/// recording.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    pairs: VecDeque<(Lsn, u64)>,
}

impl Coverage {
    /// Records that `insert` was read and `snapshot` was taken afterwards.
    pub(crate) fn note(&mut self, insert: Lsn, snapshot: &Snapshot) {
        if self
            .pairs
            .back()
            .is_some_and(|(_, xmax)| *xmax == snapshot.xmax())
        {
            // No transaction began in between, so the later position covers as much.
            self.pairs.pop_back();
        }
        if self.pairs.len() < PAIRS_MAX {
            self.pairs.push_back((insert, snapshot.xmax()));
        }
    }

    /// Returns the highest recorded position before which `snapshot` sees every commit.
    pub(crate) fn covered_by(&mut self, snapshot: &Snapshot) -> Option<Lsn> {
        while self
            .pairs
            .get(1)
            .is_some_and(|(_, xmax)| *xmax <= snapshot.xmin())
        {
            self.pairs.pop_front();
        }
        self.pairs
            .front()
            .filter(|(_, xmax)| *xmax <= snapshot.xmin())
            .map(|(insert, _)| *insert)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A server whose transactions begin, write their commit record, and become visible some time
    /// later.
    #[derive(Default)]
    struct Server {
        insert: u64,
        next_xid: u64,
        open: Vec<u64>,
        committing: Vec<(u64, u64)>,
        ended: Vec<(u64, u64)>,
    }

    impl Server {
        fn snapshot(&self) -> Snapshot {
            let mut in_progress: Vec<u64> = self
                .open
                .iter()
                .copied()
                .chain(self.committing.iter().map(|(xid, _)| *xid))
                .collect();
            in_progress.sort_unstable();
            let xmin = in_progress.first().copied().unwrap_or(self.next_xid);
            let list: Vec<String> = in_progress.iter().map(u64::to_string).collect();
            format!("{xmin}:{}:{}", self.next_xid, list.join(","))
                .parse()
                .expect("a snapshot")
        }

        fn act(&mut self, action: u8, pick: usize) {
            match action {
                0 => {
                    self.open.push(self.next_xid);
                    self.next_xid += 1;
                }
                1 if !self.open.is_empty() => {
                    let xid = self.open.remove(pick % self.open.len());
                    self.insert += 1;
                    self.committing.push((xid, self.insert));
                }
                2 if !self.committing.is_empty() => {
                    let at = pick % self.committing.len();
                    self.ended.push(self.committing.remove(at));
                }
                _ => {}
            }
        }
    }

    proptest! {
        #[test]
        fn a_snapshot_sees_every_commit_before_the_position_it_covers(
            actions in proptest::collection::vec((0u8..5, 0usize..9), 0..200),
        ) {
            let mut server = Server {
                next_xid: 3,
                ..Server::default()
            };
            let mut coverage = Coverage::default();
            for (action, pick) in actions {
                server.act(action, pick);
                match action {
                    3 => {
                        let insert = Lsn(server.insert);
                        // Other transactions may act between the two reads.
                        server.act((pick % 3) as u8, pick);
                        coverage.note(insert, &server.snapshot());
                    }
                    4 => {
                        let snapshot = server.snapshot();
                        if let Some(covered) = coverage.covered_by(&snapshot) {
                            for (xid, commit) in server.ended.iter().chain(&server.committing) {
                                prop_assert!(
                                    *commit > covered.0 || snapshot.sees(*xid),
                                    "{} at {} below {}",
                                    xid,
                                    commit,
                                    covered
                                );
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn a_quiet_server_is_covered_at_once() {
        let mut coverage = Coverage::default();
        let snapshot: Snapshot = "7:7:".parse().expect("a snapshot");
        assert_eq!(coverage.covered_by(&snapshot), None);
        coverage.note(Lsn(50), &snapshot);
        assert_eq!(coverage.covered_by(&snapshot), Some(Lsn(50)));
        coverage.note(Lsn(60), &snapshot);
        assert_eq!(
            coverage.covered_by(&"5:7:5".parse().expect("a snapshot")),
            None
        );
        assert_eq!(coverage.covered_by(&snapshot), Some(Lsn(60)));
    }
}
