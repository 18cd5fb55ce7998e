//! Commits of the partitions' positions.

use std::time::{Duration, Instant};

use super::Owner;
use crate::kafka::{Committed, Partition};

/// Interval between commits of all offsets, including unchanged ones, because a commit may be lost
/// without an error.
const RECOMMIT_INTERVAL: Duration = Duration::from_secs(30);

/// Time for which the last commit of a partition is retried. The next owner of the partition starts
/// from it.
const LAST_COMMIT_PATIENCE: Duration = Duration::from_secs(5);

impl Owner {
    /// Makes the next commit include all partitions, even unchanged ones.
    pub(super) fn recommit(&mut self) {
        self.committed_all = Instant::now();
        self.partitions
            .values_mut()
            .for_each(|owned| owned.committed = None);
    }

    /// Commits the positions that have changed. Does not wait for the result.
    pub(super) fn commit(&mut self) {
        if self.member.has_failed_commit() || self.committed_all.elapsed() > RECOMMIT_INTERVAL {
            self.recommit();
        }
        let mut commits = self.positions(None);
        commits.retain(|(_, is_changed)| *is_changed);
        let commits: Vec<Committed> = commits.into_iter().map(|(commit, _)| commit).collect();
        for commit in &commits {
            if let Some(owned) = self.partitions.get_mut(&commit.partition) {
                owned.committed = Some((commit.offset, commit.metadata.clone()));
            }
        }
        if let Err(error) = self.member.commit(&commits, false) {
            tracing::warn!(subscriber = self.seat.runner.name, %error, "offsets are not committed");
            for commit in commits {
                if let Some(owned) = self.partitions.get_mut(&commit.partition) {
                    owned.committed = None;
                }
            }
        }
    }

    /// Commits the positions of revoked partitions, even unchanged ones, because an earlier commit
    /// may have failed without an error. A temporary error is retried.
    pub(super) fn commit_last(&self, partitions: &[Partition]) {
        let commits: Vec<Committed> = self
            .positions(Some(partitions))
            .into_iter()
            .map(|(commit, _)| commit)
            .collect();
        if let Err(error) = self.member.commit_within(&commits, LAST_COMMIT_PATIENCE) {
            tracing::warn!(
                subscriber = self.seat.runner.name,
                %error,
                partitions = commits.len(),
                "the last offsets are not committed: the next member handles some events again"
            );
        }
    }

    /// Returns the positions of these partitions, or of all, and whether each differs from the last
    /// commit.
    fn positions(&self, only: Option<&[Partition]>) -> Vec<(Committed, bool)> {
        let mut positions = Vec::new();
        for (partition, owned) in &self.partitions {
            if only.is_some_and(|only| !only.contains(partition)) {
                continue;
            }
            // An offset of the deleted topic means nothing in the new one.
            if owned.topic.is_replaced() {
                continue;
            }
            let watermark = owned.progress.watermark();
            let Some(offset) = watermark.position() else {
                continue;
            };
            let metadata = watermark
                .finished_beyond()
                .encode(offset, owned.topic_id.as_ref());
            drop(watermark);
            let is_changed = owned
                .committed
                .as_ref()
                .is_none_or(|(at, with)| *at != offset || *with != metadata);
            positions.push((
                Committed {
                    partition: partition.clone(),
                    offset,
                    metadata,
                },
                is_changed,
            ));
        }
        positions
    }
}
