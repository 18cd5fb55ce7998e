//! `tidings topics list`: prints the topics of the relays and their partitions.

use std::{process::ExitCode, time::Duration};

use serde::Serialize;

use crate::{
    cli::{
        brokers,
        config::Config,
        escape::escaped,
        exit::{DONE, Failure},
        output,
        relay::{failure, session},
        table::{Align, list},
    },
    inspect::{
        topics::{PinnedTopic, topics},
        units::{grouped, time},
    },
    kafka::{Cluster, Topic},
    operator::OperatorError,
};

/// Time limit of the request to the cluster.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A topic of a relay, and its partitions in Kafka.
#[derive(Debug, Serialize)]
struct Listed {
    #[serde(flatten)]
    pinned: PinnedTopic,
    /// `None` if the topic does not exist or may not be described.
    partitions_in_kafka: Option<i32>,
}

/// Prints every topic of every relay.
pub(super) async fn run(config: &Config, json: bool) -> Result<ExitCode, Failure> {
    let mut session = session(config, "topics").await?;
    let pinned = topics(&mut session, &config.schema)
        .await
        .map_err(OperatorError::sql("reading the topics"))
        .map_err(|error| failure(config, error))?;
    let names = pinned
        .iter()
        .map(|one| one.topic.clone())
        .collect::<Vec<_>>();
    let cluster = Cluster::ask(brokers::settings(config)?, &names, TIMEOUT).await;
    let cluster = cluster.map_err(|error| {
        Failure::Failed(format!(
            "Kafka does not respond: {}\n  -> check --brokers",
            escaped(&error.to_string())
        ))
    })?;
    let in_kafka = |topic: &str| match cluster.topics.get(topic) {
        Some(Topic::There { partitions, .. }) => i32::try_from(*partitions).ok(),
        _ => None,
    };
    let listed: Vec<Listed> = pinned
        .into_iter()
        .map(|pinned| Listed {
            partitions_in_kafka: in_kafka(&pinned.topic),
            pinned,
        })
        .collect();
    if json {
        output::json(&listed)?;
    } else {
        output::lines(&text(&listed));
    }
    Ok(ExitCode::from(DONE))
}

fn text(topics: &[Listed]) -> String {
    if topics.is_empty() {
        return "no relay has published to a topic yet\n".into();
    }
    let mut rows = vec![
        ["topic", "relay", "partitions", "in Kafka", "published"]
            .map(String::from)
            .to_vec(),
    ];
    let mut notes = String::new();
    for Listed {
        pinned,
        partitions_in_kafka,
    } in topics
    {
        let PinnedTopic {
            partitions,
            published,
            ..
        } = pinned;
        let (topic, relay) = (
            escaped(&pinned.topic).into_owned(),
            escaped(&pinned.relay).into_owned(),
        );
        let there = partitions_in_kafka.map_or("missing".to_owned(), |count| count.to_string());
        rows.push(vec![
            topic.clone(),
            relay.clone(),
            partitions.to_string(),
            there,
            grouped(*published),
        ]);
        if let Some(seconds) = pinned.held_seconds {
            let state = if pinned.hold_acknowledged {
                "holds back its events"
            } else {
                "has not acknowledged the hold yet"
            };
            notes.push_str(&format!(
                "{topic}: is being grown; relay {relay} {state}, for {} at most\n  \
                 -> let the command finish, or run `tidings topics grow {topic} --abort`\n",
                time(seconds)
            ));
        } else if let Some(more) = partitions_in_kafka.filter(|count| count > partitions) {
            notes.push_str(&format!(
                "{topic}: has {more} partitions, but relay {relay} uses {partitions} of them, so \
                 that keys keep their partitions\n  \
                 -> run `tidings topics grow {topic} --partitions {more}` to use all of them\n"
            ));
        }
    }
    let table = list(
        &[
            Align::Left,
            Align::Left,
            Align::Right,
            Align::Right,
            Align::Right,
        ],
        &rows,
    );
    if notes.is_empty() {
        table
    } else {
        format!("{table}\n{notes}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_somebody_grew_is_shown_with_the_command_that_uses_its_partitions() {
        let pinned = PinnedTopic {
            topic: "order".into(),
            relay: "tidings".into(),
            partitions: 4,
            published: 1_200,
            held_seconds: None,
            hold_acknowledged: false,
        };
        let same = text(&[Listed {
            pinned: pinned.clone(),
            partitions_in_kafka: Some(4),
        }]);
        assert_eq!(
            same,
            "topic  relay    partitions  in Kafka  published\n\
             order  tidings           4         4      1,200\n"
        );
        let grown = text(&[Listed {
            pinned: pinned.clone(),
            partitions_in_kafka: Some(8),
        }]);
        assert!(
            grown.contains("`tidings topics grow order --partitions 8`"),
            "{grown}"
        );
        let held = text(&[Listed {
            pinned: PinnedTopic {
                held_seconds: Some(90.0),
                ..pinned
            },
            partitions_in_kafka: Some(4),
        }]);
        assert!(
            held.contains("has not acknowledged") && held.contains("--abort"),
            "{held}"
        );
    }
}
