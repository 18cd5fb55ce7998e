//! Assigned partitions: their start offsets, and the task of each.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Owned, Owner};
use crate::{
    kafka::{Committed, Feed, Known, Partition},
    subscriber::{
        consume::{
            partition::{PartitionTask, Progress},
            work_item::PartitionContext,
        },
        failure::dead_letter::origin_of,
        offsets::{metadata::OffsetMetadata, start_offsets::StartOffsets, watermark::Watermark},
        run::START_PAUSE,
    },
};

impl Owner {
    /// Determines the start offsets before the first partition is taken. Without them, the member
    /// would start at the beginning of the topics.
    pub(super) fn look_where_to_begin(&mut self, stop: &CancellationToken) {
        while !self.seat.from_end.is_empty() && !stop.is_cancelled() && !self.term.is_over() {
            match StartOffsets::at_the_ends(&self.member, &self.seat.from_end) {
                Ok(beginning) => {
                    self.beginning = beginning;
                    break;
                }
                Err(error) => {
                    tracing::warn!(
                        subscriber = self.seat.runner.name,
                        error,
                        "the start offsets of the group cannot be read yet"
                    );
                    std::thread::sleep(START_PAUSE);
                }
            }
        }
    }

    /// Starts a task for each assigned partition.
    pub(super) fn take(&mut self, partitions: &[Partition]) -> Result<(), String> {
        let known = self.member.committed(partitions).unwrap_or_else(|error| {
            // librdkafka fetches the offsets again itself. Without the metadata, events that are
            // finished beyond the first unfinished one are handled again.
            tracing::warn!(
                subscriber = self.seat.runner.name,
                error,
                "the committed offsets cannot be read; finished events may be handled again"
            );
            Known::default()
        });
        let mut known = known;
        self.beginning.has_begun(&known.committed);
        let ends = self
            .beginning
            .ends(&self.seat.runner.name, &self.member, &known.never);
        // Committed before anything is read, so that a later member, for example after a crash,
        // starts at the same offset and not at a later end.
        let begins = self.member.commit(&ends, true);
        known.committed.extend(ends.iter().cloned());
        for feed in self.member.take(partitions, &known)? {
            let committed = known
                .committed
                .iter()
                .find(|committed| committed.partition == feed.partition);
            self.start(feed, committed);
        }
        match begins {
            Ok(()) => self.beginning.has_begun(&ends),
            Err(error) => {
                tracing::warn!(
                    subscriber = self.seat.runner.name,
                    %error,
                    "the start offsets of the group are not committed yet"
                );
                for end in &ends {
                    if let Some(owned) = self.partitions.get_mut(&end.partition) {
                        owned.committed = None;
                    }
                }
            }
        }
        self.seat.runner.statistics.joined();
        // A rebalance that does not affect this member assigns no partitions.
        if !partitions.is_empty() {
            let list: Vec<String> = partitions
                .iter()
                .map(|partition| format!("{}/{}", partition.topic, partition.number))
                .collect();
            tracing::info!(
                subscriber = self.seat.runner.name,
                partitions = list.join(" "),
                "partitions assigned"
            );
        }
        Ok(())
    }

    fn start(&mut self, feed: Feed, committed: Option<&Committed>) {
        let partition = feed.partition.clone();
        let restored = committed.map_or_else(OffsetMetadata::default, |committed| {
            OffsetMetadata::decode(&committed.metadata, committed.offset).unwrap_or_else(
                |foreign| {
                    tracing::warn!(
                        subscriber = self.seat.runner.name,
                        ?partition,
                        metadata = committed.metadata,
                        "{foreign}: it is ignored"
                    );
                    OffsetMetadata::default()
                },
            )
        });
        let progress = Arc::new(Progress::new(Watermark::new(
            committed.map(|committed| committed.offset),
            restored,
        )));
        let drain = self.term.drain();
        let source = self
            .seat
            .topics
            .get(&*partition.topic)
            .copied()
            .unwrap_or_default();
        let context = PartitionContext {
            runner: self.seat.runner.clone(),
            parked_events: self.seat.parked_events.clone(),
            registry: self.seat.registry.clone(),
            partition: partition.clone(),
            source,
            comes_back: origin_of(&partition.topic, &self.seat.runner.name) != &*partition.topic,
            drain: drain.clone(),
        };
        let task = PartitionTask::new(feed, context, progress.clone());
        let task = self.runtime.spawn(self.term.clone().bound(task.run()));
        let committed = committed.map(|committed| (committed.offset, committed.metadata.clone()));
        let began = committed.as_ref().map(|(offset, _)| *offset);
        self.partitions.insert(
            partition,
            Owned {
                progress,
                drain,
                task,
                committed,
                began,
            },
        );
    }
}
