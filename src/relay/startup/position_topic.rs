//! Topic of a relay's positions: creation, and reading at a start.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{names::KafkaNames, recovery::Session};
use crate::{
    kafka::{Creation, Isolation, TopicError, read_to_the_end},
    relay::{
        RelayOptions,
        error::Interruption,
        leadership::relay_store::Saved,
        monitor::metrics::Component,
        pipeline::publisher::EventPublisher,
        position::{Foreign, Recorded, Replay, Seal, Trust},
    },
};

/// Maximum delay between a transaction's time limit and its abort by the coordinator
/// (`transaction.abort.timed.out.transaction.cleanup.interval.ms`, 10 s by default).
const ABORT_DELAY: Duration = Duration::from_secs(15);

/// Interval between checks for the end of a transaction.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Settings of the position topic. Small segments let compaction limit the records that a start
/// reads.
const POSITION_TOPIC: &[(&str, &str)] = &[
    ("cleanup.policy", "compact"),
    ("segment.bytes", "16777216"),
    ("min.cleanable.dirty.ratio", "0.1"),
    // A relay that dies leaves at most one transaction open, and only its successor reads this
    // topic.
    ("min.compaction.lag.ms", "0"),
];

/// Finds or creates the position topic. Returns `true` if it existed before.
pub(crate) async fn find_or_create(
    options: &RelayOptions,
    names: &KafkaNames,
    publisher: &EventPublisher,
) -> Result<bool, Interruption> {
    let topics = publisher.topics();
    let how = Creation {
        partitions: Some(1),
        replication: options.topics.replication,
        config: POSITION_TOPIC,
    };
    match topics.partitions(&names.topic).await {
        Ok(1) => Ok(true),
        Ok(more) => Err(wrong_partitions(names, more)),
        Err(TopicError::Unknown(_)) => match topics.create(&names.topic, how).await {
            Ok(()) => Ok(false),
            Err(error @ TopicError::Unreachable(_)) => Err(error.into()),
            Err(error) => Err(Interruption::Refused(format!(
                "{error}: delivery exactly once keeps its positions there; create it \
                 (kafka-topics.sh --create --topic {} --partitions 1 --config \
                 cleanup.policy=compact), let the relay's principal create topics that begin with \
                 `tidings.position.`, or run with --delivery at-least-once",
                names.topic
            ))),
        },
        Err(error) => Err(error.into()),
    }
}

/// Returns the position in the topic, and the records that do not count. An unreadable topic is not
/// an error if the operator has moved the relay.
pub(crate) async fn read(
    options: &RelayOptions,
    names: &KafkaNames,
    saved: &Saved,
    signing: (&Seal, bool),
) -> Result<(Option<Recorded>, Foreign), Interruption> {
    let (recorded, foreign, _) = read_committed(options, names, saved, signing).await?;
    Ok((recorded, foreign))
}

/// Reads the topic once every earlier producer of the relay is fenced off, so that its transactions
/// have ended.
///
/// A transaction that has not ended hides all records after its first one, committed or not. There
/// are two known causes:
///
/// - Another program holds a transaction open in the topic. It may end soon.
/// - Kafka has dropped the end of one of the relay's own transactions (KAFKA-20734). Then nothing
///   ends the transaction before the same producer writes again.
///
/// The relay waits for the end until the time limit of its transactions and [`ABORT_DELAY`] have
/// passed. Then it continues from the last visible position, and publishes the events of the hidden
/// transactions again.
pub(crate) async fn read_after_fencing(
    session: &Session<'_>,
    saved: &Saved,
    signing: (&Seal, bool),
    transaction_timeout: Duration,
) -> Result<(Option<Recorded>, Foreign), Interruption> {
    let Session {
        options,
        names,
        observer,
        lost,
        ..
    } = session;
    let (began, mut standing) = (Instant::now(), None);
    loop {
        let (recorded, foreign, end) = read_committed(options, names, saved, signing).await?;
        let hidden = hidden(options, names, signing.0, end).await?;
        if hidden == 0 {
            return Ok((recorded, foreign));
        }
        if began.elapsed() > transaction_timeout + ABORT_DELAY {
            tracing::error!(
                topic = names.topic,
                offset = end,
                positions = hidden,
                "a transaction in the topic of positions has not ended; the relay continues from \
                 the last position before it, and events published since may repeat. Kafka 4.3 and \
                 4.4 can drop the end of a transaction while a partition has no leader \
                 (KAFKA-20734): see docs/operating.md, \"Prepare Kafka\""
            );
            return Ok((recorded, foreign));
        }
        standing.get_or_insert_with(|| {
            let text = format!(
                "a transaction that has not ended hides {hidden} positions in topic `{}`; the \
                 relay waits for its end",
                names.topic
            );
            tracing::warn!(offset = end, "{text}");
            observer.hold(Component::Kafka, text)
        });
        observer.pulse().moved();
        tokio::select! {
            () = sleep(LOOK_AGAIN) => {}
            () = lost.cancelled() => return Err(Interruption::LeaseLost),
        }
    }
}

/// Returns the number of the relay's positions after the offset, whether or not their transactions
/// have ended.
async fn hidden(
    options: &RelayOptions,
    names: &KafkaNames,
    seal: &Seal,
    end: i64,
) -> Result<u64, Interruption> {
    let ours = seal.clone();
    let count =
        move |count: &mut u64, _: i64, value: &[u8]| *count += u64::from(ours.signed(value));
    let (count, _) = read_to_the_end(
        &options.kafka,
        &names.topic,
        (Isolation::Uncommitted, end),
        0,
        count,
    )
    .await?;
    Ok(count)
}

async fn read_committed(
    options: &RelayOptions,
    names: &KafkaNames,
    saved: &Saved,
    (seal, signs): (&Seal, bool),
) -> Result<(Option<Recorded>, Foreign, i64), Interruption> {
    let unsigned = !signs && saved.position.is_some();
    let trust = Trust {
        seal: seal.clone(),
        known: saved.number,
        unsigned,
    };
    let (replay, end) = read_to_the_end(
        &options.kafka,
        &names.topic,
        (Isolation::Committed, 0),
        Replay::new(trust),
        Replay::read,
    )
    .await?;
    match replay.end() {
        Ok((recorded, foreign)) => {
            warn_of(&foreign, names);
            Ok((recorded, foreign, end))
        }
        Err(error) if saved.moved_to.is_some() => {
            tracing::warn!(
                topic = names.topic,
                "the positions in the topic cannot be read: {error}"
            );
            Ok((None, Foreign::default(), end))
        }
        Err(error) => Err(Interruption::Refused(format!(
            "the positions in topic `{}` cannot be read: {error}; `tidings relay rewind \
             --to-mirror --name {}` continues from the position in the database",
            names.topic, options.name
        ))),
    }
}

fn warn_of(foreign: &Foreign, names: &KafkaNames) {
    if foreign.records > 0 {
        tracing::error!(
            topic = names.topic,
            records = foreign.records,
            last_offset = foreign.last,
            "skips records that this relay has not signed: another program writes to the topic of \
             its positions, or an earlier version of this relay ran since. Only the relay's \
             principal needs Write on it (docs/security.md)"
        );
    }
}

/// Returns the refusal of a position topic that does not have exactly one partition.
pub(crate) fn wrong_partitions(
    names: &KafkaNames,
    partitions: impl std::fmt::Display,
) -> Interruption {
    Interruption::Refused(format!(
        "topic `{}` has {partitions} partitions; the relay's positions need exactly one: the relay \
         did not create this topic, so delete it",
        names.topic
    ))
}
