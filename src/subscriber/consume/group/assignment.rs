//! Assigned partitions: their start offsets, and the task of each.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Owned, Owner};
use crate::{
    kafka::{Committed, Feed, Known, MemberError, Partition, TopicId, TopicWatch},
    subscriber::{
        consume::{
            partition::{PartitionTask, Progress},
            work_item::PartitionContext,
        },
        failure::dead_letter::origin_of,
        offsets::{
            metadata::{OffsetMetadata, topic_of},
            start_offsets::StartOffsets,
            watermark::Watermark,
        },
        run::START_PAUSE,
    },
};

impl Owner {
    /// Determines the start offsets before the first partition is taken. Without them, the member
    /// would start at the beginning of the topics. A later member uses those of the first one: a
    /// topic that lost its commits since then was created again, and all of its records are new.
    pub(super) fn look_where_to_begin(&mut self, stop: &CancellationToken) {
        while !self.seat.from_end.is_empty()
            && self.seat.beginning().is_none()
            && !stop.is_cancelled()
            && !self.term.is_over()
        {
            match StartOffsets::at_the_ends(&self.member, &self.seat.from_end) {
                Ok(beginning) => {
                    *self.seat.beginning() = Some(beginning);
                    break;
                }
                Err(error) => {
                    tracing::warn!(
                        subscriber = self.seat.runner.name,
                        %error,
                        "the start offsets of the group cannot be read yet"
                    );
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "the polling thread is not one of the runtime"
                    )]
                    std::thread::sleep(START_PAUSE);
                }
            }
        }
    }

    /// Starts a task for each assigned partition.
    pub(super) fn take(&mut self, partitions: &[Partition]) -> Result<(), MemberError> {
        let mut feeds = self.member.feeds(partitions)?;
        let known = self.member.committed(partitions).unwrap_or_else(|error| {
            // librdkafka fetches the offsets again itself. Without the metadata, events that are
            // finished beyond the first unfinished one are handled again.
            tracing::warn!(
                subscriber = self.seat.runner.name,
                %error,
                "the committed offsets cannot be read; finished events may be handled again"
            );
            Known::default()
        });
        let mut known = known;
        self.await_topic_ids(&mut feeds, &known)?;
        let mut beginning = self.seat.beginning().take().unwrap_or_default();
        beginning.has_begun(&known.committed);
        self.leave_out_replaced(&feeds, &mut known, &mut beginning);
        let ends = beginning.ends(&self.seat.runner.name, &self.member, &known.never);
        // A later member needs them too if this one fails from here on.
        *self.seat.beginning() = Some(beginning);
        // Committed before anything is read, so that a later member, for example after a crash,
        // starts at the same offset and not at a later end.
        let begins = self.member.commit(&ends, true);
        known.committed.extend(ends.iter().cloned());
        self.member.take(partitions, &known)?;
        for feed in feeds {
            let committed = known
                .committed
                .iter()
                .find(|committed| committed.partition == feed.partition);
            self.start(feed, committed);
        }
        match begins {
            Ok(()) => {
                if let Some(beginning) = &mut *self.seat.beginning() {
                    beginning.has_begun(&ends);
                }
            }
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

    /// Treats partitions as never committed if their commit belongs to a deleted topic. Kafka
    /// deletes the commits together with the topic, but a member that had not noticed the deletion
    /// may have committed since the topic was created again.
    fn leave_out_replaced(&self, feeds: &[Feed], known: &mut Known, beginning: &mut StartOffsets) {
        let id_of = |partition: &Partition| {
            let feed = feeds.iter().find(|feed| feed.partition == *partition);
            feed.and_then(|feed| feed.topic.id.clone())
        };
        for replaced in without_replaced(known, beginning, id_of) {
            tracing::warn!(
                subscriber = self.seat.runner.name,
                topic = &*replaced.partition.topic,
                partition = replaced.partition.number,
                committed = replaced.offset,
                "the topic was deleted and created again: the offset that was committed in the \
                 deleted topic is ignored, and the partition is read from its beginning"
            );
        }
    }

    /// Waits for the ids of the topics for which a commit states one. The client learns them when
    /// it creates the queue of a partition.
    fn await_topic_ids(&self, feeds: &mut [Feed], known: &Known) -> Result<(), MemberError> {
        let topics: Vec<&str> = known
            .committed
            .iter()
            .filter(|committed| topic_of(&committed.metadata).is_some())
            .map(|committed| &*committed.partition.topic)
            .collect();
        self.member.learn_topic_ids(&topics)?;
        for feed in feeds {
            feed.topic = self.member.topic_watch(&feed.partition.topic);
        }
        Ok(())
    }

    /// Learns the ids of topics that the client did not have when their partitions were assigned.
    ///
    /// # Errors
    ///
    /// Returns [`MemberError::TopicReplaced`] if a partition started at an offset of a topic that
    /// was deleted, or belongs to a topic that is created again. Another client of the subscriber
    /// may have read the log line about the new topic, so this member need not have received a
    /// change.
    pub(super) fn learn_topic_ids(&mut self) -> Result<(), MemberError> {
        for (partition, owned) in &mut self.partitions {
            let now = || self.member.topic_watch(&partition.topic);
            match learned(&owned.topic, owned.topic_id.as_ref(), now) {
                Learned::Nothing => {}
                Learned::Id(id, watch) => (owned.topic_id, owned.topic) = (Some(id), watch),
                Learned::Replaced => return Err(self.seat.replaced(&partition.topic)),
            }
        }
        Ok(())
    }

    fn start(&mut self, feed: Feed, committed: Option<&Committed>) {
        let (partition, topic) = (feed.partition.clone(), feed.topic.clone());
        let topic_id = topic
            .id
            .clone()
            .or_else(|| committed.and_then(|committed| topic_of(&committed.metadata)));
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
            control: self.seat.control.clone(),
            registry: self.seat.registry.clone(),
            partition: partition.clone(),
            source,
            comes_back: origin_of(&partition.topic, &self.seat.runner.name) != &*partition.topic,
            drain: drain.clone(),
        };
        let task = PartitionTask::new(feed, context, progress.clone());
        #[expect(
            clippy::disallowed_methods,
            reason = "ends with `drain` or the term; revoking the partition aborts it"
        )]
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
                topic,
                topic_id,
                began,
            },
        );
    }
}

/// Information about the topic of a partition.
#[derive(Debug)]
enum Learned {
    Nothing,
    /// The id became known.
    Id(TopicId, TopicWatch),
    /// The topic was created again, so that the partition's offsets belong to a deleted one.
    Replaced,
}

/// Evaluates the topic of a partition. `began_in` is the topic that its offsets belong to, and
/// `now` returns the current topic.
fn learned(
    topic: &TopicWatch,
    began_in: Option<&TopicId>,
    now: impl FnOnce() -> TopicWatch,
) -> Learned {
    if topic.is_replaced() {
        return Learned::Replaced;
    }
    if topic.id.is_some() {
        return Learned::Nothing;
    }
    let now = now();
    let Some(id) = now.id.clone() else {
        return Learned::Nothing;
    };
    // The topic may have been created again since the first check.
    match topic.is_replaced() || began_in.is_some_and(|then| id.replaces(then)) {
        true => Learned::Replaced,
        false => Learned::Id(id, now),
    }
}

/// Removes the commits that belong to a deleted topic, and returns them. Their topics are read from
/// the beginning, including partitions without a commit.
fn without_replaced(
    known: &mut Known,
    beginning: &mut StartOffsets,
    id_of: impl Fn(&Partition) -> Option<TopicId>,
) -> Vec<Committed> {
    let is_replaced = |committed: &mut Committed| {
        let (now, then) = (id_of(&committed.partition), topic_of(&committed.metadata));
        now.zip(then).is_some_and(|(now, then)| now.replaces(&then))
    };
    let replaced: Vec<Committed> = known.committed.extract_if(.., is_replaced).collect();
    for Committed { partition, .. } in &replaced {
        beginning.forget(&partition.topic);
        known.never.push(partition.clone());
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::TopicIds;

    const ONE: &str = "zRHyCUTESxuRmvmVTs5kZQ";
    const OTHER: &str = "y/TxDjvvSt+5P5brNGFqSA";

    fn ids() -> TopicIds {
        let ids = TopicIds::default();
        ids.know_cluster(|| Some("cluster".into()));
        ids
    }

    /// Reads the line that a client logs about a topic's new id.
    fn log(ids: &TopicIds, id: &str) {
        ids.read(&format!("Topic order changed id from {ONE} to {id}"));
    }

    #[test]
    fn a_topic_whose_change_another_client_has_read_replaces_the_member() {
        let ids = ids();
        let early = ids.watch("order");
        let seen = |topic: &TopicWatch, began_in| learned(topic, began_in, || ids.watch("order"));
        assert!(matches!(seen(&early, None), Learned::Nothing));
        log(&ids, ONE);
        let Learned::Id(one, known) = seen(&early, None) else {
            panic!("the id is known");
        };
        assert!(matches!(seen(&known, Some(&one)), Learned::Nothing));
        log(&ids, OTHER);
        assert!(matches!(seen(&known, Some(&one)), Learned::Replaced));
        assert!(matches!(seen(&early, None), Learned::Replaced));
        // The partition was assigned after the change, and its commit names the deleted topic.
        let late = TopicIds::default().watch("order");
        assert!(matches!(seen(&late, Some(&one)), Learned::Replaced));
    }

    #[test]
    fn all_partitions_of_a_topic_that_was_created_again_start_at_their_beginning() {
        let partition = |topic: &str, number| Partition {
            topic: topic.into(),
            number,
        };
        let (old, new) = (ids(), ids());
        log(&old, ONE);
        log(&new, OTHER);
        let commit = |topic, id: &TopicIds| Committed {
            partition: partition(topic, 0),
            offset: 7,
            metadata: OffsetMetadata::default().encode(7, id.watch("order").id.as_ref()),
        };
        let mut known = Known {
            committed: vec![commit("order", &old), commit("payment", &new)],
            never: vec![partition("order", 1), partition("payment", 1)],
        };
        let mut beginning = StartOffsets::of(known.never.clone());
        let replaced = without_replaced(&mut known, &mut beginning, |_| new.watch("order").id);
        assert_eq!(replaced.len(), 1);
        assert_eq!(known.committed.len(), 1);
        assert!(known.never.contains(&partition("order", 0)));
        assert!(!beginning.contains(&partition("order", 1)));
        assert!(beginning.contains(&partition("payment", 1)));
    }
}
