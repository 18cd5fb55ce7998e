//! Topics that do not exist yet, looked for by the client of a group member.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::{consumer::partitions_within, member_context::MemberContext};

/// Looks for topics by the client of a member, from another thread. Keeps the client alive only during a call.
#[derive(Clone)]
pub(crate) struct Lookout(Weak<BaseConsumer<MemberContext>>);

impl Lookout {
    pub(super) fn new(member: &Arc<BaseConsumer<MemberContext>>) -> Self {
        Self(Arc::downgrade(member))
    }

    /// True once after the client reported a subscribed topic as missing.
    pub(crate) fn lacks_topic(&self) -> bool {
        self.0
            .upgrade()
            .is_some_and(|member| member.context().lacks_topic.swap(false, Ordering::AcqRel))
    }

    /// True if the topic exists. Creates none. Blocks for up to this time.
    ///
    /// # Errors
    /// When no broker answers, or the topic may not be described.
    pub(crate) fn exists(&self, topic: &str, within: Duration) -> Result<bool, String> {
        let Some(member) = self.0.upgrade() else {
            return Err("the member has left".into());
        };
        partitions_within(&member, topic, within).map(|partitions| !partitions.is_empty())
    }

    /// Makes the member read the list of topics again, so that it joins with those that are new. Blocks for up to this time.
    ///
    /// # Errors
    /// When no broker answers.
    pub(crate) fn refresh(&self, within: Duration) -> Result<(), String> {
        let Some(member) = self.0.upgrade() else {
            return Ok(());
        };
        // Of all topics: the client does not apply a shorter answer to its subscription.
        member
            .fetch_metadata(None, within)
            .map(drop)
            .map_err(|error| error.to_string())
    }
}
