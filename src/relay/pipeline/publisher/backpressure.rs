//! Reasons why an event has to wait, and the end of each wait.

use std::{future::Future, pin::Pin, time::Duration};

use super::{EventPublisher, size_limit::SizeLimit, topic_lookup::Looked};
use crate::{
    kafka::message_bytes_max,
    relay::{error::Interruption, monitor::metrics::Component},
};

/// Interval between attempts when a cause of back-pressure does not signal its end.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// The reason why an event has to wait.
#[derive(Debug)]
pub(crate) enum Backpressure {
    /// The window of records in flight has no room for a record of this many bytes.
    Full(usize),
    /// Its topic was not used before.
    NewTopic(String),
    /// Its topic was looked up, and its number of partitions is not stored yet.
    Unregistered(String),
    /// The size limit that its record exceeds was looked up some time ago.
    SizeLimit(String),
    /// Its partition has not acknowledged its first record yet.
    FirstContact,
    /// Earlier batches have not progressed far enough for the next one.
    Committing,
    /// All batches that were ended must be durable first.
    Unsettled,
    /// This event or the one before it is sent alone, because a batch that contained it was
    /// refused.
    Alone,
    /// The parked events that are not stored yet have reached their limit.
    Parking,
    /// The set of parked events has reached this limit.
    ParkedFull(u64),
    /// Its topic is unusable, and the event cannot be parked.
    UnusableTopic(String),
    /// Its topic is being grown.
    Growing(String),
}

impl Backpressure {
    /// Describes the object that the event waits for, for messages to operators.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Full(_) => "records in flight: check that the brokers answer and that \
                              min.insync.replicas replicas are in sync"
                .into(),
            Self::NewTopic(topic) | Self::UnusableTopic(topic) => format!("topic `{topic}`"),
            Self::Unregistered(topic) => {
                format!("the number of partitions of topic `{topic}` to be stored")
            }
            Self::SizeLimit(topic) => {
                format!("the look-up of the largest message that topic `{topic}` accepts")
            }
            Self::ParkedFull(limit) => format!(
                "room for parked events: the limit of {limit} is reached (see `tidings parked \
                 list`)"
            ),
            Self::FirstContact => "the first acknowledgement of its partition".into(),
            Self::Committing | Self::Unsettled => "the Kafka transactions before it".into(),
            Self::Alone => "the records before it, because it is sent alone".into(),
            Self::Parking => "parked events to be stored".into(),
            Self::Growing(topic) => {
                format!("topic `{topic}`, which is being grown (see `tidings topics list`)")
            }
        }
    }
}

/// Outcome of a wait.
pub(crate) enum Resolved {
    GoOn,
    Topic(Looked),
    /// The topic's current limit. `None` if it cannot be read.
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
    /// Waits until the cause of back-pressure is resolved. The future borrows nothing, so
    /// checkpoints can be stored meanwhile. Pass its result to [`EventPublisher::resolved`].
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
            // The pipeline stores the parked events, and the number of partitions.
            Backpressure::Parking | Backpressure::Unregistered(_) => {
                Box::pin(then_go_on(std::future::ready(())))
            }
            Backpressure::Growing(topic) => {
                tracing::info!(topic, "holds back events: the topic is being grown");
                self.observer.note(
                    Component::Stream,
                    format!("holds back events for topic {topic}, which is being grown"),
                );
                // The end of the growth ends the session.
                Box::pin(std::future::pending())
            }
            Backpressure::SizeLimit(topic) => {
                let kafka = self.options.kafka.clone();
                Box::pin(async move {
                    let limit = message_bytes_max(&kafka, &topic).await.map(SizeLimit::new);
                    Resolved::SizeLimit { topic, limit }
                })
            }
            // The source releases the events that it can meanwhile.
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

    /// Records the outcome of a wait.
    ///
    /// # Errors
    ///
    /// Returns an interruption if the producer has failed. A failed producer also makes room, but
    /// accepts nothing.
    pub(crate) fn resolved(&mut self, resolved: Resolved) -> Result<(), Interruption> {
        match resolved {
            Resolved::GoOn => {}
            Resolved::SizeLimit { topic, limit } => self.isolation.learn_limit(topic, limit),
            Resolved::Topic(looked) => self.looked(looked),
        }
        self.sink.failure().map_or(Ok(()), Err)
    }
}
