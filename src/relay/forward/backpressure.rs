//! Back-pressure: why an event has to wait, and how the wait ends.

use std::{future::Future, pin::Pin};

use super::{Forwarder, topic_lookup::look_up};
use crate::relay::{error::Interruption, observe::Part};

/// Why an event has to wait.
#[derive(Debug)]
pub(in crate::relay) enum Hold {
    /// The window is full for a record of this many bytes.
    Full(usize),
    /// Its topic was not met before.
    NewTopic(String),
    /// Its partition has not acknowledged its first record yet.
    FirstContact,
    /// The batches before are not far enough for the next one.
    Committing,
    /// What was cut must be durable first.
    Unsettled,
    /// It, or the one before it, goes alone: a batch with it was refused.
    Alone,
    /// As many are set aside as may be before they are stored.
    Parking,
    /// Its topic is being grown.
    Growing(String),
}

impl Hold {
    /// What the event waits for, for people.
    pub(in crate::relay) fn describe(&self) -> String {
        match self {
            Self::Full(_) => "records under way: see that the brokers answer and that min.insync.replicas replicas are in sync".into(),
            Self::NewTopic(topic) => format!("topic `{topic}`"),
            Self::FirstContact => "the first acknowledgement of its partition".into(),
            Self::Committing | Self::Unsettled => "the Kafka transactions before it".into(),
            Self::Alone => "the records before it, because it is sent alone".into(),
            Self::Parking => "parked events to be stored".into(),
            Self::Growing(topic) => format!("topic `{topic}`, which is being grown (see `tidings topics list`)"),
        }
    }
}

/// What was found out while an event was held.
pub(in crate::relay) enum Cleared {
    GoOn,
    Topic { topic: String, partitions: i32 },
}

async fn then_go_on(wait: impl Future<Output = ()>) -> Cleared {
    wait.await;
    Cleared::GoOn
}

impl Forwarder {
    /// Waits until what held an event is out of the way. The future borrows nothing, so that the books can be kept meanwhile; give
    /// its result to [`Forwarder::cleared`].
    pub(in crate::relay) fn clear(&self, hold: Hold) -> Pin<Box<dyn Future<Output = Cleared> + Send>> {
        match hold {
            Hold::Full(bytes) => Box::pin(then_go_on(self.sink.room(bytes))),
            Hold::FirstContact | Hold::Alone => Box::pin(then_go_on(self.sink.acknowledged())),
            Hold::Committing => Box::pin(then_go_on(self.sink.admitted())),
            Hold::Unsettled => Box::pin(then_go_on(self.sink.settled())),
            // Whoever keeps the books stores them.
            Hold::Parking => Box::pin(then_go_on(std::future::ready(()))),
            Hold::Growing(topic) => {
                tracing::info!(topic, "holds back events: the topic is being grown");
                self.observer.note(Part::Stream, format!("holds back events for topic {topic}, which is being grown"));
                // The session ends with the hold.
                Box::pin(std::future::pending())
            }
            Hold::NewTopic(topic) => {
                let may_be_compacted = self.options.delivery == crate::relay::Delivery::ExactlyOnce;
                Box::pin(look_up(self.topics.clone(), self.options.topics.clone(), may_be_compacted, self.observer.clone(), topic))
            }
        }
    }

    /// Takes note of what was found out while an event was held.
    ///
    /// # Errors
    /// When the producer has failed: then there is room, but not for long.
    pub(in crate::relay) fn cleared(&mut self, cleared: Cleared) -> Result<(), Interruption> {
        if let Cleared::Topic { topic, partitions } = cleared {
            let pinned = self.pinned.get(&topic).copied().unwrap_or(partitions);
            if pinned != partitions {
                tracing::warn!(
                    topic,
                    partitions,
                    pinned,
                    "the topic has another number of partitions than this relay spreads keys over: see `tidings topics list`"
                );
            }
            // Keys stay where they are when a topic has grown; one that was made anew with fewer has nowhere else to put them.
            self.routes.learn(topic, pinned.min(partitions));
        }
        self.sink.failure().map_or(Ok(()), Err)
    }
}
