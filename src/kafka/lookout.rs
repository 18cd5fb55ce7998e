//! Checks for missing topics through the client of a group member.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::{consumer::ConsumerError, member_context::MemberContext, offsets::partitions_within};

/// Checks whether topics exist through a member's client, from another thread. Keeps the client
/// alive only during a call.
#[derive(Clone)]
pub(crate) struct Lookout(Weak<BaseConsumer<MemberContext>>);

impl Lookout {
    pub(super) fn new(member: &Arc<BaseConsumer<MemberContext>>) -> Self {
        Self(Arc::downgrade(member))
    }

    /// Returns `true` once after the client has reported a subscribed topic as missing.
    pub(crate) fn lacks_topic(&self) -> bool {
        self.0
            .upgrade()
            .is_some_and(|member| member.context().lacks_topic.swap(false, Ordering::AcqRel))
    }

    /// Returns `true` if the topic exists. Does not create it. Blocks for up to `within`.
    ///
    /// # Errors
    ///
    /// Returns an error if no broker responds or the topic may not be described.
    pub(crate) fn exists(&self, topic: &str, within: Duration) -> Result<bool, ConsumerError> {
        let Some(member) = self.0.upgrade() else {
            return Err(ConsumerError::Left);
        };
        partitions_within(&member, topic, within).map(|partitions| !partitions.is_empty())
    }

    /// Makes the member refresh its list of topics, so that it subscribes to new ones. Blocks for
    /// up to `within`.
    ///
    /// # Errors
    ///
    /// Returns an error if no broker responds.
    pub(crate) fn refresh(&self, within: Duration) -> Result<(), ConsumerError> {
        let Some(member) = self.0.upgrade() else {
            return Ok(());
        };
        // Requests all topics, because the client does not apply a partial response to its
        // subscription.
        Ok(member.fetch_metadata(None, within).map(drop)?)
    }
}
