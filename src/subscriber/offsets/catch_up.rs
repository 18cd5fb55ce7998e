//! Whether a subscriber's group has handled everything that topics held at some moment, whichever members own their partitions.
//!
//! The group's commits tell it, with what is finished beyond them. So neither the assignment nor the other members have to be known: a
//! partition that no member owns at this moment is behind as long as it holds a record that is not handled.

use std::sync::{Arc, Mutex, PoisonError};

use super::metadata::Finished;
use crate::{
    kafka::{Beat, Committed, Ends, GroupReader, Settings, Unhandled},
    subscriber::Ground,
};

/// Looks at what the group has handled of some topics.
pub(crate) struct CatchUp {
    settings: Settings,
    group: String,
    topics: Vec<String>,
    /// Kept from one look to the next, since it has connections.
    reader: Mutex<Option<Arc<GroupReader>>>,
}

impl CatchUp {
    /// Events of these aggregates.
    pub(crate) fn new(ground: &Ground, aggregates: &[&'static str]) -> Self {
        let mut topics: Vec<String> = aggregates
            .iter()
            .flat_map(|aggregate| ground.topics_of(aggregate))
            .collect();
        topics.sort_unstable();
        topics.dedup();
        Self {
            settings: ground.kafka.clone(),
            group: ground.consumer.clone(),
            topics,
            reader: Mutex::default(),
        }
    }

    /// True if there is no topic to look at.
    pub(crate) fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// Where the topics end at this moment.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub(crate) async fn ends(&self) -> Result<Ends, String> {
        let topics = self.topics.clone();
        self.ask(move |reader, beat| reader.ends(&topics, beat))
            .await
    }

    /// The first event before these ends that the group has not handled, of each partition that has one.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub(crate) async fn behind(&self, ends: &Ends) -> Result<Vec<Unhandled>, String> {
        let ends = ends.clone();
        self.ask(move |reader, beat| reader.unhandled(&ends, &is_finished, beat))
            .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&GroupReader, &Beat) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let reader = self.reader()?;
        let answer = reader.ask(question).await;
        if answer.is_err() {
            *self.reader.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        answer
    }

    fn reader(&self) -> Result<Arc<GroupReader>, String> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        match &*reader {
            Some(reader) => Ok(reader.clone()),
            None => Ok(reader
                .insert(Arc::new(GroupReader::new(&self.settings, &self.group)?))
                .clone()),
        }
    }
}

/// Whether a record beyond a commit is finished. Metadata of others says nothing, as for the next owner of the partition.
fn is_finished(committed: &Committed, offset: i64) -> bool {
    Finished::decode(&committed.metadata, committed.offset)
        .is_ok_and(|finished| finished.contains(offset))
}
