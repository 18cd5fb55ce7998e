//! Release of the events that were parked because their topic was unusable. They are published in
//! order.

use super::{
    pages::{Reader, damaged},
    parked::{Remaining, durable},
};
use crate::{
    failpoint::{self, Step},
    relay::{
        parked::{
            set::Aggregate,
            store::{self, Action, Converted, Parked},
        },
        pipeline::{Pipeline, Stop, publisher::Delivery},
        row::{
            debezium::RowBuffer,
            native::{Row, TableRow},
            table_layout::TableLayout,
        },
    },
};

/// Maximum number of events that are released together. One position contains their numbers.
const RELEASED_AT_ONCE: usize = 1_000;

/// Outcome of sending the first events that wait for a topic.
#[derive(Debug, Default)]
struct Outcome {
    released: Vec<i64>,
    /// Events that now wait for another reason.
    converted: Vec<Converted>,
    /// An event cannot be sent yet, and neither can the later ones.
    stopped: bool,
}

/// Publishes the first events that wait for `topic`, and waits until they are durable.
///
/// # Errors
///
/// Returns [`Stop`] if the relay shuts down or the session is interrupted.
pub(crate) async fn release_topic(
    topic: &str,
    reader: &mut Reader,
    pipeline: &mut Pipeline,
) -> Result<Remaining, Stop> {
    pipeline.store_parked().await?;
    let mut events = store::first_of_topic(pipeline.relay_store(), topic, RELEASED_AT_ONCE).await?;
    if events.is_empty() {
        tracing::info!(topic, "no event waits for the topic any more");
        pipeline.publisher_mut().topic_faults().released(topic);
        pipeline.parked_mut().nothing_waits_for(topic);
        return Ok(Remaining::Waits);
    }
    let position = pipeline.progress().position();
    let passed = events
        .iter()
        .take_while(|(_, event)| event.is_passed(&position))
        .count();
    let unpassed = events.split_off(passed).len();
    // Discarded events are removed together by `parked::discard`.
    events.retain(|(_, event)| event.action != Some(Action::Discard));
    if events.is_empty() {
        return Ok(if unpassed > 0 {
            Remaining::Later
        } else {
            Remaining::More
        });
    }
    let outcome = publish(topic, &events, reader, pipeline).await?;
    if !outcome.converted.is_empty() {
        store::convert(pipeline.relay_store(), &outcome.converted).await?;
    }
    failpoint::reached(Step::ReleaseSent);
    durable(pipeline).await?;
    pipeline
        .parked_mut()
        .waited_for(topic, outcome.released.len() + outcome.converted.len());
    tracing::info!(
        topic,
        events = outcome.released.len(),
        "events that waited for the topic are released"
    );
    Ok(if outcome.stopped {
        Remaining::Waits
    } else {
        Remaining::More
    })
}

/// Sends these events.
async fn publish(
    topic: &str,
    events: &[(Aggregate, Parked)],
    reader: &mut Reader,
    pipeline: &mut Pipeline,
) -> Result<Outcome, Stop> {
    let mut outcome = Outcome::default();
    let mut rest = events;
    while !rest.is_empty() && !outcome.stopped {
        let seqs: Vec<i64> = rest.iter().map(|(_, event)| event.seq).collect();
        let (page, done) = reader.read_these(&seqs).await?;
        let mut expected = rest[..done].iter();
        rest = &rest[done..];
        for cells in page.rows(&TableLayout::Native)? {
            let (cells, mut scratch) = (cells.map_err(damaged)?, RowBuffer::default());
            let TableRow { row, .. } = TableLayout::Native.event(&cells, 0, &mut scratch)?;
            for (aggregate, missing) in expected
                .by_ref()
                .take_while(|(_, event)| event.seq != row.seq)
            {
                outcome
                    .converted
                    .push(Converted::wrong(missing.seq, store::MISSING.into()));
                pipeline.parked_mut().adopt(aggregate, missing.seq);
            }
            match send(topic, &row, pipeline).await? {
                Sent::Released => outcome.released.push(row.seq),
                Sent::Converted(converted) => outcome.converted.push(converted),
                Sent::Stopped => {
                    outcome.stopped = true;
                    return Ok(outcome);
                }
            }
            pipeline.end_batch_if_wanted(false).await?;
        }
        for (aggregate, missing) in expected {
            outcome
                .converted
                .push(Converted::wrong(missing.seq, store::MISSING.into()));
            pipeline.parked_mut().adopt(aggregate, missing.seq);
        }
    }
    Ok(outcome)
}

/// Outcome of sending one event.
enum Sent {
    Released,
    Converted(Converted),
    Stopped,
}

async fn send(topic: &str, row: &Row<'_>, pipeline: &mut Pipeline) -> Result<Sent, Stop> {
    let aggregate = Aggregate {
        kind: row.event.aggregate_type.to_owned(),
        id: row.event.aggregate_id.to_owned(),
    };
    if pipeline
        .parked()
        .holds(&aggregate.kind, &aggregate.id, row.seq)
    {
        pipeline.parked_mut().adopt(&aggregate, row.seq);
        return Ok(Sent::Converted(Converted::behind(row.seq)));
    }
    match pipeline.deliver(row).await? {
        Delivery::Sent(_) => {
            pipeline.progress().released(row.seq);
            Ok(Sent::Released)
        }
        Delivery::Undeliverable(reason) => {
            tracing::error!(
                seq = row.seq,
                "an event cannot be delivered although its topic is usable: {reason}"
            );
            pipeline.parked_mut().adopt(&aggregate, row.seq);
            Ok(Sent::Converted(Converted::wrong(row.seq, reason)))
        }
        Delivery::TopicWaits(other) if other == topic => Ok(Sent::Stopped),
        Delivery::TopicWaits(other) => {
            let faults = pipeline.publisher_mut().topic_faults();
            let reason = faults.reason(&other).unwrap_or_default().to_owned();
            pipeline.parked_mut().waits_for(&other);
            Ok(Sent::Converted(Converted::other_topic(
                row.seq, other, reason,
            )))
        }
    }
}
