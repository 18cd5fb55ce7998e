//! Back-pressure: why an event has to wait, and how the wait ends.

use std::{future::Future, pin::Pin, time::Duration};

use super::{EventPublisher, size_limit::SizeLimit, topic_lookup::Looked};
use crate::{
    kafka::message_bytes_max,
    relay::{error::Interruption, monitor::metrics::Part},
};

/// How long to wait before looking again at what does not report when it changes.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// Why an event has to wait.
#[derive(Debug)]
pub(crate) enum Backpressure {
    /// The window is full for a record of this many bytes.
    Full(usize),
    /// Its topic was not met before.
    NewTopic(String),
    /// The limit by which its topic would refuse it was looked up a while ago.
    SizeLimit(String),
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
    /// As much is parked as may be.
    ParkedFull(u64),
    /// Its topic cannot be used, and it cannot be set aside.
    UnusableTopic(String),
    /// Its topic is being grown.
    Growing(String),
}

impl Backpressure {
    /// What the event waits for, for people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Full(_) => "records under way: see that the brokers answer and that min.insync.replicas replicas are in sync".into(),
            Self::NewTopic(topic) | Self::UnusableTopic(topic) => format!("topic `{topic}`"),
            Self::SizeLimit(topic) => format!("the largest message that topic `{topic}` takes to be looked up"),
            Self::ParkedFull(limit) => format!("room for parked events: {limit} are (see `tidings parked list`)"),
            Self::FirstContact => "the first acknowledgement of its partition".into(),
            Self::Committing | Self::Unsettled => "the Kafka transactions before it".into(),
            Self::Alone => "the records before it, because it is sent alone".into(),
            Self::Parking => "parked events to be stored".into(),
            Self::Growing(topic) => format!("topic `{topic}`, which is being grown (see `tidings topics list`)"),
        }
    }
}

/// What was found out while an event was held.
pub(crate) enum Resolved {
    GoOn,
    Topic(Looked),
    /// What a topic's limit is now; `None` if that cannot be read.
    SizeLimit {
        topic: String,
        limit: Option<SizeLimit>,
    },
}

async fn then_go_on(wait: impl Future<Output = ()>) -> Resolved {
    wait.await;
    Resolved::GoOn
}

impl EventPublisher {
    /// Waits until what held an event is out of the way. The future borrows nothing, so that the books can be kept meanwhile; give
    /// its result to [`EventPublisher::cleared`].
    pub(crate) fn resolve(
        &self,
        backpressure: Backpressure,
    ) -> Pin<Box<dyn Future<Output = Resolved> + Send>> {
        match backpressure {
            Backpressure::Full(bytes) => Box::pin(then_go_on(self.sink.room(bytes))),
            Backpressure::FirstContact | Backpressure::Alone => {
                Box::pin(then_go_on(self.sink.acknowledged()))
            }
            Backpressure::Committing => Box::pin(then_go_on(self.sink.admitted())),
            Backpressure::Unsettled => Box::pin(then_go_on(self.sink.settled())),
            // Whoever keeps the books stores them.
            Backpressure::Parking => Box::pin(then_go_on(std::future::ready(()))),
            Backpressure::Growing(topic) => {
                tracing::info!(topic, "holds back events: the topic is being grown");
                self.observer.note(
                    Part::Stream,
                    format!("holds back events for topic {topic}, which is being grown"),
                );
                // The session ends with the hold.
                Box::pin(std::future::pending())
            }
            Backpressure::SizeLimit(topic) => {
                let kafka = self.options.kafka.clone();
                Box::pin(async move {
                    let limit = message_bytes_max(&kafka, &topic).await.map(SizeLimit::new);
                    Resolved::SizeLimit { topic, limit }
                })
            }
            // Whoever forwards releases what it can meanwhile.
            Backpressure::ParkedFull(_) => Box::pin(then_go_on(tokio::time::sleep(FULL_PAUSE))),
            Backpressure::NewTopic(topic) => {
                Box::pin(self.lookup.look_up(topic, self.observer.clone()))
            }
            Backpressure::UnusableTopic(topic) => {
                let looking = self.lookup.look_up(topic, self.observer.clone());
                Box::pin(async move {
                    tokio::time::sleep(FULL_PAUSE).await;
                    looking.await
                })
            }
        }
    }

    /// Takes note of what was found out while an event was held.
    ///
    /// # Errors
    /// When the producer has failed: then there is room, but not for long.
    pub(crate) fn resolved(&mut self, resolved: Resolved) -> Result<(), Interruption> {
        match resolved {
            Resolved::GoOn => {}
            Resolved::SizeLimit { topic, limit } => self.isolation.learn_limit(topic, limit),
            Resolved::Topic(looked) => self.looked(looked),
        }
        self.sink.failure().map_or(Ok(()), Err)
    }
}
