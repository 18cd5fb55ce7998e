//! Parked events as a source: carries out the operator's decisions, and publishes in order the
//! events that nothing holds back any more.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    pages::{Reader, damaged},
    parked_topics::release_topic,
};
use crate::{
    failpoint::{self, Step},
    relay::{
        error::Interruption,
        parked::{
            set::Aggregate,
            store::{self, Action, MISSING, Parked},
        },
        pipeline::{
            Pipeline, Stop,
            publisher::{Backpressure, Delivery},
        },
        row::{debezium::RowBuffer, native::TableRow, table_layout::TableLayout},
    },
};

/// Maximum number of events that are released together. One position contains their numbers.
const RELEASED_AT_ONCE: usize = 1_000;

/// Approximate maximum time that other events wait for a release.
const AT_A_TIME: Duration = Duration::from_secs(1);

/// Returns the events of an aggregate that can be published now: in order, without discarded ones,
/// up to the first undeliverable event without an operator's decision.
fn free(events: &[Parked]) -> Vec<i64> {
    let rest = events
        .iter()
        .filter(|event| event.action != Some(Action::Discard));
    let free =
        rest.take_while(|event| event.reason.is_none() || event.action == Some(Action::Retry));
    free.map(|event| event.seq).collect()
}

/// Released events that may not be durable yet.
#[derive(Default)]
struct Batch {
    released: Vec<(Aggregate, Vec<i64>)>,
    events: usize,
    /// Aggregates with more events to release afterwards.
    again: Vec<Aggregate>,
}

impl Batch {
    /// Waits until the batch is durable.
    async fn finish(&mut self, pipeline: &mut Pipeline) -> Result<(), Stop> {
        let Self {
            released,
            events,
            again,
        } = std::mem::take(self);
        failpoint::reached(Step::ReleaseSent);
        durable(pipeline).await?;
        for (aggregate, seqs) in &released {
            pipeline.parked_mut().released(aggregate, seqs);
        }
        again
            .into_iter()
            .for_each(|aggregate| pipeline.parked_mut().make_ready(aggregate));
        if events > 0 {
            tracing::info!(
                events,
                aggregates = released.len(),
                "parked events are released"
            );
        }
        Ok(())
    }
}

/// Carries out decisions and releases events, for about [`AT_A_TIME`]. Other events wait meanwhile.
///
/// # Errors
///
/// Returns [`Stop`] if the relay shuts down or the session is interrupted.
pub(super) async fn release(pipeline: &mut Pipeline) -> Result<(), Stop> {
    if pipeline.parked().is_empty() {
        return Ok(());
    }
    let began = Instant::now();
    let (discards, looks) = store::decisions(pipeline.relay_store()).await?;
    if discards {
        discard(began, pipeline).await?;
    }
    if looks {
        for topic in store::topics_to_look_at(pipeline.relay_store()).await? {
            pipeline.publisher_mut().topic_faults().look_now(&topic);
        }
    }
    for (topic, reason) in pipeline.publisher_mut().topic_faults().restated() {
        store::restate(pipeline.relay_store(), &topic, &reason).await?;
    }
    for aggregate in store::decided(pipeline.relay_store()).await? {
        pipeline.parked_mut().make_ready(aggregate);
    }
    let mut reader = Reader::new(pipeline.publisher().options(), &TableLayout::Native);
    release_topics(began, &mut reader, pipeline).await?;
    release_aggregates(began, &mut reader, pipeline).await?;
    pipeline.report_parked();
    Ok(())
}

/// Discards the events that an operator has decided to discard.
async fn discard(began: Instant, pipeline: &mut Pipeline) -> Result<(), Interruption> {
    pipeline.store_parked().await?;
    loop {
        let discarded = store::discard(pipeline.relay_store()).await?;
        for row in &discarded {
            let (kind, id) = (&row.aggregate.kind, &row.aggregate.id);
            tracing::warn!(
                event = %row.id, seq = row.seq, events = row.events,
                aggregate = format!("{kind}/{id}"), reason = row.reason,
                "discards a parked event, as an operator decided (tidings parked discard)"
            );
            let parked = pipeline.parked_mut();
            match &row.waits_for {
                Some(topic) => parked.waited_for(topic, 1),
                None => {
                    parked.released(&row.aggregate, &[row.seq]);
                    parked.make_ready(row.aggregate.clone());
                }
            }
        }
        if (discarded.len() as i64) < store::DISCARDED_AT_ONCE || began.elapsed() > AT_A_TIME {
            return Ok(());
        }
    }
}

/// Releases the events of topics that can be used again.
async fn release_topics(
    began: Instant,
    reader: &mut Reader,
    pipeline: &mut Pipeline,
) -> Result<(), Stop> {
    for topic in pipeline.publisher_mut().topic_faults().releasing() {
        loop {
            if began.elapsed() > AT_A_TIME {
                return Ok(());
            }
            pipeline.require_lease()?;
            match release_topic(&topic, reader, pipeline).await? {
                Remaining::More => {}
                Remaining::Waits | Remaining::Later => break,
            }
        }
    }
    Ok(())
}

/// Releases the aggregates that nothing holds back.
async fn release_aggregates(
    began: Instant,
    reader: &mut Reader,
    pipeline: &mut Pipeline,
) -> Result<(), Stop> {
    let (mut batch, mut later) = (Batch::default(), Vec::new());
    while let Some(aggregate) = pipeline.parked_mut().next_ready() {
        pipeline.require_lease()?;
        match send_some(&aggregate, reader, pipeline, &mut batch).await? {
            Remaining::Waits => {}
            Remaining::More => batch.again.push(aggregate),
            Remaining::Later => later.push(aggregate),
        }
        if batch.events >= RELEASED_AT_ONCE {
            batch.finish(pipeline).await?;
        }
        if began.elapsed() > AT_A_TIME {
            break;
        }
    }
    batch.finish(pipeline).await?;
    later
        .into_iter()
        .for_each(|aggregate| pipeline.parked_mut().make_ready(aggregate));
    Ok(())
}

/// The rest of an aggregate or a topic after a release.
pub(super) enum Remaining {
    /// More events may be releasable.
    More,
    /// Nothing is left, or the rest waits for an operator or a topic.
    Waits,
    /// The position has not passed the rest yet, or its topic is unusable at present.
    Later,
}

/// Sends the first events of an aggregate.
async fn send_some(
    aggregate: &Aggregate,
    reader: &mut Reader,
    pipeline: &mut Pipeline,
    batch: &mut Batch,
) -> Result<Remaining, Stop> {
    pipeline.store_parked().await?;
    let mut events = store::first(pipeline.relay_store(), aggregate, RELEASED_AT_ONCE).await?;
    if events.is_empty() {
        pipeline.parked_mut().free(aggregate);
        return Ok(Remaining::Waits);
    }
    if events[0].is_range {
        return Ok(unfold(aggregate, pipeline).await?);
    }
    events.truncate(
        events
            .iter()
            .position(|event| event.is_range)
            .unwrap_or(events.len()),
    );
    // The position must pass a parked event before the event is released. Otherwise a relay that
    // dies in between reads the event again and no longer finds it parked.
    let position = pipeline.progress().position();
    let passed = events
        .iter()
        .take_while(|event| event.is_passed(&position))
        .count();
    let unpassed = events.split_off(passed);
    let free = free(&events);
    if free.is_empty() {
        return Ok(if unpassed.is_empty() {
            Remaining::Waits
        } else {
            Remaining::Later
        });
    }
    // An event that was refused before is likely to be refused again. It is sent alone, so that a
    // refusal concerns it alone.
    let retried = events
        .iter()
        .filter(|event| event.action == Some(Action::Retry) && event.reason.is_some());
    retried.for_each(|event| pipeline.publisher_mut().suspect(event.seq));
    let (stopped_at, ended) = match send(&free, reader, pipeline).await? {
        Sent::All => (None, Remaining::More),
        Sent::BeforeTopic(seq) => (Some(seq), Remaining::Later),
        Sent::UpTo(seq, reason) => {
            tracing::error!(
                seq,
                aggregate = format!("{}/{}", aggregate.kind, aggregate.id),
                "a released event cannot be delivered: {reason}"
            );
            store::failed(pipeline.relay_store(), aggregate, seq, &reason).await?;
            (Some(seq), Remaining::Waits)
        }
    };
    let released: Vec<i64> = free
        .into_iter()
        .take_while(|seq| stopped_at != Some(*seq))
        .collect();
    batch.events += released.len();
    batch.released.push((aggregate.clone(), released));
    Ok(ended)
}

/// Lists the first events of an aggregate's range one by one.
async fn unfold(aggregate: &Aggregate, pipeline: &mut Pipeline) -> Result<Remaining, Interruption> {
    let Some(range) = pipeline.parked().range(aggregate).cloned() else {
        return Err(Interruption::Refused(format!(
            "the table of parked events has a range of {}/{} that this relay did not store: see \
             `tidings parked show {0}/{1}`",
            aggregate.kind, aggregate.id
        )));
    };
    let (listed, rest) = store::unfold(pipeline.relay_store(), aggregate, &range).await?;
    pipeline.parked_mut().unfold(aggregate, &listed, rest);
    pipeline.parked_mut().make_ready(aggregate.clone());
    Ok(Remaining::Waits)
}

/// Outcome of sending released events.
enum Sent {
    All,
    /// This event is undeliverable for this reason.
    UpTo(i64, String),
    /// The topic of this event is unusable at present.
    BeforeTopic(i64),
}

/// Sends these events. Each is recorded in the position as released as soon as it is sent.
async fn send(seqs: &[i64], reader: &mut Reader, pipeline: &mut Pipeline) -> Result<Sent, Stop> {
    let mut rest = seqs;
    while !rest.is_empty() {
        let (page, done) = reader.read_these(rest).await?;
        let mut expected = rest[..done].iter();
        rest = &rest[done..];
        for cells in page.rows(&TableLayout::Native)? {
            let (cells, mut scratch) = (cells.map_err(damaged)?, RowBuffer::default());
            let TableRow { row, .. } = TableLayout::Native.event(&cells, 0, &mut scratch)?;
            match expected.next() {
                Some(seq) if *seq == row.seq => {}
                Some(seq) => return Ok(Sent::UpTo(*seq, MISSING.into())),
                None => break,
            }
            match pipeline.deliver(&row).await? {
                Delivery::Sent(_) => pipeline.progress().released(row.seq),
                Delivery::Undeliverable(reason) => return Ok(Sent::UpTo(row.seq, reason)),
                Delivery::TopicWaits(_) => return Ok(Sent::BeforeTopic(row.seq)),
            }
            pipeline.end_batch_if_wanted(false).await?;
        }
        if let Some(seq) = expected.next() {
            return Ok(Sent::UpTo(*seq, MISSING.into()));
        }
    }
    Ok(Sent::All)
}

/// Waits until released events are durable and deleted from the table of parked events.
pub(super) async fn durable(pipeline: &mut Pipeline) -> Result<(), Stop> {
    if pipeline.settled().released.is_empty() {
        return Ok(());
    }
    while !pipeline.end_batch().await? {
        pipeline.wait_for(Backpressure::Committing).await?;
    }
    while !pipeline.settled().released.is_empty() {
        pipeline.wait_for(Backpressure::Unsettled).await?;
        pipeline.tick().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(seq: i64, wrong: bool, action: u8) -> Parked {
        let action = [None, Some(Action::Retry), Some(Action::Discard)][usize::from(action)];
        Parked {
            seq,
            reason: wrong.then(|| "too large".into()),
            action,
            is_range: false,
            xid: None,
            lately: false,
        }
    }

    proptest! {
        #[test]
        fn nothing_overtakes_an_event_that_still_waits(
            events in proptest::collection::vec((any::<bool>(), 0u8..3), 0..20),
        ) {
            let events: Vec<Parked> = (1..)
                .zip(&events)
                .map(|(seq, (wrong, action))| event(seq, *wrong, *action))
                .collect();
            let free = free(&events);
            for event in &events {
                let discarded = event.action == Some(Action::Discard);
                let blocked = events.iter().any(|earlier| {
                    earlier.seq <= event.seq && earlier.reason.is_some() && earlier.action.is_none()
                });
                prop_assert_eq!(free.contains(&event.seq), !discarded && !blocked);
            }
            prop_assert!(free.is_sorted());
        }
    }

    #[test]
    fn giving_up_the_event_in_the_way_lets_those_behind_it_go() {
        let events = [
            event(1, true, 2),
            event(2, false, 0),
            event(3, true, 0),
            event(4, false, 0),
            event(5, false, 2),
        ];
        assert_eq!(free(&events), [2]);
    }
}
