//! The end of a wait for a topic: what was set aside because the topic could not be used is published in order.

use super::{
    pages::{Reader, damaged},
    parked::{Ended, durable},
};
use crate::{
    failpoint::{self, Step},
    relay::{
        error::Interruption,
        parked::{
            set::Aggregate,
            store::{self, Action, Converted, Parked},
        },
        pipeline::{
            checkpoint::Books,
            publisher::{Delivery, Forwarder},
        },
        row::{
            debezium::Scratch,
            native::{Row, TableRow},
            table_layout::Shape,
        },
    },
};

/// Events released at once: their numbers are in one position.
const RELEASED_AT_ONCE: usize = 1_000;

/// What became of the first events that wait for a topic.
#[derive(Debug, Default)]
struct Outcome {
    released: Vec<i64>,
    /// These wait for something else now.
    converted: Vec<Converted>,
    /// This one cannot be sent yet, nor can those after it.
    stopped: bool,
}

/// Publishes the first events that wait for `topic`, and waits until that is durable.
///
/// # Errors
/// Whatever interrupts the session.
pub(crate) async fn release_topic(
    topic: &str,
    reader: &mut Reader,
    forwarder: &mut Forwarder,
    books: &mut Books,
    shutdown: &tokio_util::sync::CancellationToken,
) -> Result<Ended, Interruption> {
    books.park_pending(forwarder).await?;
    let mut events = store::first_of_topic(&mut books.ledger, topic, RELEASED_AT_ONCE).await?;
    if events.is_empty() {
        tracing::info!(topic, "nothing waits for the topic any more");
        forwarder.topic_faults().released(topic);
        forwarder.parked_mut().nothing_waits_for(topic);
        return Ok(Ended::Waits);
    }
    let position = books.progress.position();
    let passed = events
        .iter()
        .take_while(|(_, event)| event.is_passed(&position))
        .count();
    let unpassed = events.split_off(passed).len();
    // Those that were given up are removed together, elsewhere.
    events.retain(|(_, event)| event.action != Some(Action::Discard));
    if events.is_empty() {
        return Ok(if unpassed > 0 {
            Ended::Later
        } else {
            Ended::More
        });
    }
    let Some(outcome) = publish(topic, &events, reader, forwarder, books, shutdown).await? else {
        return Ok(Ended::Shutdown);
    };
    if !outcome.converted.is_empty() {
        store::convert(&mut books.ledger, &outcome.converted).await?;
    }
    failpoint::reached(Step::ReleaseSent);
    if !durable(forwarder, books, shutdown).await? {
        return Ok(Ended::Shutdown);
    }
    forwarder
        .parked_mut()
        .waited_for(topic, outcome.released.len() + outcome.converted.len());
    tracing::info!(
        topic,
        events = outcome.released.len(),
        "events that waited for the topic are released"
    );
    Ok(if outcome.stopped {
        Ended::Waits
    } else {
        Ended::More
    })
}

/// Sends these events; `None` if `shutdown` came first.
async fn publish(
    topic: &str,
    events: &[(Aggregate, Parked)],
    reader: &mut Reader,
    forwarder: &mut Forwarder,
    books: &mut Books,
    shutdown: &tokio_util::sync::CancellationToken,
) -> Result<Option<Outcome>, Interruption> {
    let mut outcome = Outcome::default();
    let mut rest = events;
    while !rest.is_empty() && !outcome.stopped {
        let seqs: Vec<i64> = rest.iter().map(|(_, event)| event.seq).collect();
        let (page, done) = reader.read_these(&seqs).await?;
        let mut expected = rest[..done].iter();
        rest = &rest[done..];
        for cells in page.rows(&Shape::Own)? {
            let (cells, mut scratch) = (cells.map_err(damaged)?, Scratch::default());
            let TableRow { row, .. } = Shape::Own.event(&cells, 0, &mut scratch)?;
            for (aggregate, missing) in expected
                .by_ref()
                .take_while(|(_, event)| event.seq != row.seq)
            {
                outcome
                    .converted
                    .push(Converted::wrong(missing.seq, store::MISSING.into()));
                forwarder.parked_mut().adopt(aggregate, missing.seq);
            }
            let Some(converted) = send(topic, &row, forwarder, books, shutdown).await? else {
                return Ok(None);
            };
            match converted {
                Sent::Released => outcome.released.push(row.seq),
                Sent::Converted(converted) => outcome.converted.push(converted),
                Sent::Stopped => {
                    outcome.stopped = true;
                    return Ok(Some(outcome));
                }
            }
            books.cut_if_wanted(forwarder, false).await?;
        }
        for (aggregate, missing) in expected {
            outcome
                .converted
                .push(Converted::wrong(missing.seq, store::MISSING.into()));
            forwarder.parked_mut().adopt(aggregate, missing.seq);
        }
    }
    Ok(Some(outcome))
}

/// What became of one event.
enum Sent {
    Released,
    Converted(Converted),
    Stopped,
}

async fn send(
    topic: &str,
    row: &Row<'_>,
    forwarder: &mut Forwarder,
    books: &mut Books,
    shutdown: &tokio_util::sync::CancellationToken,
) -> Result<Option<Sent>, Interruption> {
    let aggregate = Aggregate {
        kind: row.event.aggregate_type.to_owned(),
        id: row.event.aggregate_id.to_owned(),
    };
    if forwarder
        .parked()
        .holds(&aggregate.kind, &aggregate.id, row.seq)
    {
        forwarder.parked_mut().adopt(&aggregate, row.seq);
        return Ok(Some(Sent::Converted(Converted::behind(row.seq))));
    }
    loop {
        match forwarder.deliver(row, false)? {
            Ok(Delivery::Sent(_)) => {
                books.progress.released(row.seq);
                return Ok(Some(Sent::Released));
            }
            Ok(Delivery::Undeliverable(reason)) => {
                tracing::error!(
                    seq = row.seq,
                    "cannot be delivered although its topic can be used: {reason}"
                );
                forwarder.parked_mut().adopt(&aggregate, row.seq);
                return Ok(Some(Sent::Converted(Converted::wrong(row.seq, reason))));
            }
            Ok(Delivery::TopicWaits(other)) if other == topic => return Ok(Some(Sent::Stopped)),
            Ok(Delivery::TopicWaits(other)) => {
                let reason = forwarder
                    .topic_faults()
                    .reason(&other)
                    .unwrap_or_default()
                    .to_owned();
                forwarder.parked_mut().waits_for(&other);
                return Ok(Some(Sent::Converted(Converted::other_topic(
                    row.seq, other, reason,
                ))));
            }
            Err(hold) => {
                if !books.attend(forwarder, hold, shutdown).await? {
                    return Ok(None);
                }
            }
        }
    }
}
