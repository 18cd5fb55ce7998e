//! The latest events for the page: a plain consumer of every topic, without a consumer group.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::Utc;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::Failure;
use crate::events::TOPICS;
use crate::servers::PARTITIONS;

/// Number of events to keep.
const KEPT: usize = 60;

/// The latest events. Cheap to clone.
#[derive(Clone)]
pub(super) struct Feed(Arc<Mutex<VecDeque<Value>>>);

impl Feed {
    pub(super) fn start(brokers: String) -> Result<Self, Failure> {
        let mut config = ClientConfig::new();
        // The client requires a group name but joins no group, because its partitions are assigned.
        config
            .set("bootstrap.servers", brokers)
            .set("group.id", "shop-page")
            .set("enable.auto.commit", "false");
        let consumer: StreamConsumer = config.create()?;
        let mut all = TopicPartitionList::new();
        for (topic, partition) in TOPICS
            .iter()
            .flat_map(|topic| (0..PARTITIONS).map(move |partition| (topic, partition)))
        {
            all.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&all)?;
        let feed = Self(Arc::default());
        tokio::spawn(feed.clone().follow(consumer, Utc::now().timestamp_millis()));
        Ok(feed)
    }

    /// Returns the events, the newest first.
    pub(super) fn events(&self) -> Vec<Value> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .rev()
            .cloned()
            .collect()
    }

    async fn follow(self, consumer: StreamConsumer, opened: i64) {
        loop {
            let Ok(message) = consumer.recv().await else {
                continue;
            };
            // Skips events of an earlier shop.
            let Some(at) = message.timestamp().to_millis().filter(|at| *at >= opened) else {
                continue;
            };
            let headers = message.headers().map(|headers| headers.iter());
            let named =
                headers.and_then(|mut headers| headers.find(|header| header.key == "ce_type"));
            let event_type = named
                .and_then(|header| header.value)
                .map(String::from_utf8_lossy);
            let payload: Value =
                serde_json::from_slice(message.payload().unwrap_or_default()).unwrap_or_default();
            let event = json!({
                "topic": message.topic(),
                "at": at,
                "type": event_type,
                "payload": payload,
            });
            let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            events.push_back(event);
            if events.len() > KEPT {
                events.pop_front();
            }
        }
    }
}
