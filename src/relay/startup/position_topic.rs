//! The topic of a relay's positions: made, and read back at a start.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{names::KafkaNames, recovery::Session};
use crate::{
    kafka::{Creation, Extent, TopicError, read_to_the_end},
    relay::{
        RelayOptions,
        error::Interruption,
        leadership::relay_store::Saved,
        monitor::metrics::Part,
        pipeline::publisher::EventPublisher,
        position::{Foreign, Recorded, Replay, Seal, Trust},
    },
};

/// The longest time after its time limit at which a coordinator aborts a transaction
/// (`transaction.abort.timed.out.transaction.cleanup.interval.ms`, 10 s by default).
const ABORT_DELAY: Duration = Duration::from_secs(15);

/// How often the end of a transaction is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Settings of the position topic: small segments, so that compaction keeps what a start reads small.
const POSITION_TOPIC: &[(&str, &str)] = &[
    ("cleanup.policy", "compact"),
    ("segment.bytes", "16777216"),
    ("min.cleanable.dirty.ratio", "0.1"),
    // A relay that dies leaves at most one transaction open; nobody reads this topic but its successor.
    ("min.compaction.lag.ms", "0"),
];

/// Makes sure of the topic of positions; whether it was there.
pub(crate) async fn find_or_create(
    options: &RelayOptions,
    names: &KafkaNames,
    forwarder: &EventPublisher,
) -> Result<bool, Interruption> {
    let topics = forwarder.topics();
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
                "{error}: delivery exactly once keeps its positions there; create it (kafka-topics.sh --create --topic {} --partitions 1 --config cleanup.policy=compact), let the relay's principal create topics that begin with `tidings.position.`, or run with --delivery at-least-once",
                names.topic
            ))),
        },
        Err(error) => Err(error.into()),
    }
}

/// What the topic holds, and what of it does not count. If the operator has moved the relay, it need not be readable.
pub(crate) async fn read(
    options: &RelayOptions,
    names: &KafkaNames,
    saved: &Saved,
    signing: (&Seal, bool),
) -> Result<(Option<Recorded>, Foreign), Interruption> {
    let (recorded, foreign, _) = read_committed(options, names, saved, signing).await?;
    Ok((recorded, foreign))
}

/// The same once every earlier producer of the relay is fenced off, so that its transactions have ended.
///
/// A transaction that has not ended hides all records behind its first one, committed or not. Two causes are known: another
/// program holds a transaction open in the topic, and Kafka has dropped the end of one of the relay's own (KAFKA-20734). The
/// relay waits for the first. In the second case nothing ends the transaction before the same producer writes again, and the
/// relay continues without its position: what the transaction holds is published again.
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
                "a transaction in the topic of positions has not ended; the relay goes on from the last position before it, and events published \
                 since may be repeated. Kafka 4.3 and 4.4 can drop the end of a transaction while a partition has no leader (KAFKA-20734): see \
                 docs/operating.md, \"Prepare Kafka\""
            );
            return Ok((recorded, foreign));
        }
        standing.get_or_insert_with(|| {
            let text = format!(
                "a transaction that has not ended hides {hidden} positions in topic `{}`; the relay waits for its end",
                names.topic
            );
            tracing::warn!(offset = end, "{text}");
            observer.hold(Part::Kafka, text)
        });
        observer.pulse().moved();
        tokio::select! {
            () = sleep(LOOK_AGAIN) => {}
            () = lost.cancelled() => return Err(Interruption::LeaseLost),
        }
    }
}

/// How many positions of the relay are behind the offset, whether or not their transactions have ended.
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
        Extent::Uncommitted(end),
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
        Extent::Committed,
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
            "the positions in topic `{}` cannot be read: {error}; `tidings relay rewind --to-mirror --name {}` goes on from the position that the database has",
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
            "passes over records that this relay has not signed: another program writes to the topic of its positions, or an earlier version of \
             this relay ran since. Only the relay's principal needs Write on it (docs/security.md)"
        );
    }
}

/// A refusal: positions of one relay need one partition.
pub(crate) fn wrong_partitions(
    names: &KafkaNames,
    partitions: impl std::fmt::Display,
) -> Interruption {
    Interruption::Refused(format!(
        "topic `{}` has {partitions} partitions; the relay's positions need it to have one: it was not made by the relay, delete it",
        names.topic
    ))
}
