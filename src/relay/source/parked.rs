//! The end of a wait: the leader does what a person has decided, and releases what nothing is in the way of, in order.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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
            checkpoint::Books,
            publisher::{Delivery, Forwarder, Hold},
        },
        row::{debezium::Scratch, native::TableRow, table_layout::Shape},
    },
};

/// Events released at once: their numbers are in one position.
const RELEASED_AT_ONCE: usize = 1_000;

/// How long other events wait for those that are released, at a time.
const AT_A_TIME: Duration = Duration::from_secs(1);

/// The events of an aggregate that go now: discarded ones are left out, the others go in order, up to the first one with which something
/// is wrong and of which nothing is decided.
fn free(events: &[Parked]) -> Vec<i64> {
    let rest = events
        .iter()
        .filter(|event| event.action != Some(Action::Discard));
    let free =
        rest.take_while(|event| event.reason.is_none() || event.action == Some(Action::Retry));
    free.map(|event| event.seq).collect()
}

/// What was sent and is not known to be durable yet.
#[derive(Default)]
struct Batch {
    released: Vec<(Aggregate, Vec<i64>)>,
    events: usize,
    /// Aggregates of which more can be released then.
    again: Vec<Aggregate>,
}

impl Batch {
    /// Waits until it is durable; false if `shutdown` came first.
    async fn finish(
        &mut self,
        forwarder: &mut Forwarder,
        books: &mut Books,
        shutdown: &CancellationToken,
    ) -> Result<bool, Interruption> {
        let Self {
            released,
            events,
            again,
        } = std::mem::take(self);
        failpoint::reached(Step::ReleaseSent);
        if !durable(forwarder, books, shutdown).await? {
            return Ok(false);
        }
        for (aggregate, seqs) in &released {
            forwarder.parked_mut().released(aggregate, seqs);
        }
        again
            .into_iter()
            .for_each(|aggregate| forwarder.parked_mut().make_ready(aggregate));
        if events > 0 {
            tracing::info!(
                events,
                aggregates = released.len(),
                "parked events are released"
            );
        }
        Ok(true)
    }
}

/// Releases what is decided, for a while; false if `shutdown` came first.
///
/// # Errors
/// Whatever interrupts the session.
pub(crate) async fn release(
    forwarder: &mut Forwarder,
    books: &mut Books,
    shutdown: &CancellationToken,
) -> Result<bool, Interruption> {
    if forwarder.parked().is_empty() {
        return Ok(true);
    }
    let began = Instant::now();
    let (discards, looks) = store::decisions(&mut books.ledger).await?;
    if discards {
        give_up(began, forwarder, books).await?;
    }
    if looks {
        for topic in store::topics_to_look_at(&mut books.ledger).await? {
            forwarder.topic_faults().look_now(&topic);
        }
    }
    for (topic, reason) in forwarder.topic_faults().restated() {
        store::restate(&mut books.ledger, &topic, &reason).await?;
    }
    for aggregate in store::decided(&mut books.ledger).await? {
        forwarder.parked_mut().make_ready(aggregate);
    }
    let mut reader = Reader::new(forwarder.options(), &Shape::Own);
    let done = release_topics(began, &mut reader, forwarder, books, shutdown).await?
        && release_aggregates(began, &mut reader, forwarder, books, shutdown).await?;
    books.show_parked(forwarder);
    Ok(done)
}

/// Gives up what a person has decided to give up.
async fn give_up(
    began: Instant,
    forwarder: &mut Forwarder,
    books: &mut Books,
) -> Result<(), Interruption> {
    books.park_pending(forwarder).await?;
    loop {
        let discarded = store::discard(&mut books.ledger).await?;
        for row in &discarded {
            let (kind, id) = (&row.aggregate.kind, &row.aggregate.id);
            tracing::warn!(
                event = %row.id, seq = row.seq, events = row.events, aggregate = format!("{kind}/{id}"), reason = row.reason,
                "gives an event up, as it was told to (tidings parked discard)"
            );
            let parked = forwarder.parked_mut();
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

/// Releases what waits for topics that can be used; false if `shutdown` came first.
async fn release_topics(
    began: Instant,
    reader: &mut Reader,
    forwarder: &mut Forwarder,
    books: &mut Books,
    shutdown: &CancellationToken,
) -> Result<bool, Interruption> {
    for topic in forwarder.topic_faults().releasing() {
        loop {
            if began.elapsed() > AT_A_TIME {
                return Ok(true);
            }
            if books.lost().is_cancelled() {
                return Err(Interruption::LeaseLost);
            }
            match release_topic(&topic, reader, forwarder, books, shutdown).await? {
                Ended::Shutdown => return Ok(false),
                Ended::More => {}
                Ended::Waits | Ended::Later => break,
            }
        }
    }
    Ok(true)
}

/// Releases aggregates of which nothing is in the way; false if `shutdown` came first.
async fn release_aggregates(
    began: Instant,
    reader: &mut Reader,
    forwarder: &mut Forwarder,
    books: &mut Books,
    shutdown: &CancellationToken,
) -> Result<bool, Interruption> {
    let (mut batch, mut later) = (Batch::default(), Vec::new());
    while let Some(aggregate) = forwarder.parked_mut().next_ready() {
        if books.lost().is_cancelled() {
            return Err(Interruption::LeaseLost);
        }
        match send_some(&aggregate, reader, forwarder, books, shutdown, &mut batch).await? {
            Ended::Shutdown => return Ok(false),
            Ended::Waits => {}
            Ended::More => batch.again.push(aggregate),
            Ended::Later => later.push(aggregate),
        }
        if batch.events >= RELEASED_AT_ONCE && !batch.finish(forwarder, books, shutdown).await? {
            return Ok(false);
        }
        if began.elapsed() > AT_A_TIME {
            break;
        }
    }
    let done = batch.finish(forwarder, books, shutdown).await?;
    later
        .into_iter()
        .for_each(|aggregate| forwarder.parked_mut().make_ready(aggregate));
    Ok(done)
}

pub(crate) enum Ended {
    /// There may be more to release.
    More,
    /// Nothing waits, or what does needs a person, or its topic.
    Waits,
    /// The relay has not passed what is to be released, or its topic cannot be used.
    Later,
    Shutdown,
}

/// Sends the first events of an aggregate.
async fn send_some(
    aggregate: &Aggregate,
    reader: &mut Reader,
    forwarder: &mut Forwarder,
    books: &mut Books,
    shutdown: &CancellationToken,
    batch: &mut Batch,
) -> Result<Ended, Interruption> {
    books.park_pending(forwarder).await?;
    let mut events = store::first(&mut books.ledger, aggregate, RELEASED_AT_ONCE).await?;
    if events.is_empty() {
        forwarder.parked_mut().free(aggregate);
        return Ok(Ended::Waits);
    }
    if events[0].is_range {
        return unfold(aggregate, forwarder, books).await;
    }
    events.truncate(
        events
            .iter()
            .position(|event| event.is_range)
            .unwrap_or(events.len()),
    );
    // An event that was parked when the relay died, and is met once more, must not be gone by then.
    let position = books.progress.position();
    let passed = events
        .iter()
        .take_while(|event| event.is_passed(&position))
        .count();
    let unpassed = events.split_off(passed);
    let free = free(&events);
    if free.is_empty() {
        return Ok(if unpassed.is_empty() {
            Ended::Waits
        } else {
            Ended::Later
        });
    }
    // What was refused before is likely to be refused again: alone, so that it is known at once.
    let retried = events
        .iter()
        .filter(|event| event.action == Some(Action::Retry) && event.reason.is_some());
    retried.for_each(|event| forwarder.suspect(event.seq));
    let (stopped_at, ended) = match publish(&free, reader, forwarder, books, shutdown).await? {
        Published::Shutdown => return Ok(Ended::Shutdown),
        Published::All => (None, Ended::More),
        Published::BeforeTopic(seq) => (Some(seq), Ended::Later),
        Published::UpTo(seq, reason) => {
            tracing::error!(
                seq,
                aggregate = format!("{}/{}", aggregate.kind, aggregate.id),
                "cannot be delivered after all: {reason}"
            );
            store::failed(&mut books.ledger, aggregate, seq, &reason).await?;
            (Some(seq), Ended::Waits)
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
async fn unfold(
    aggregate: &Aggregate,
    forwarder: &mut Forwarder,
    books: &mut Books,
) -> Result<Ended, Interruption> {
    let Some(range) = forwarder.parked().range(aggregate).cloned() else {
        return Err(Interruption::Refused(format!(
            "the table of parked events has a range of {}/{} that this relay did not store: see tidings parked show {0}/{1}",
            aggregate.kind, aggregate.id
        )));
    };
    let (listed, rest) = store::unfold(&mut books.ledger, aggregate, &range).await?;
    forwarder.parked_mut().unfold(aggregate, &listed, rest);
    forwarder.parked_mut().make_ready(aggregate.clone());
    Ok(Ended::Waits)
}

enum Published {
    All,
    /// This one cannot be delivered, for this reason.
    UpTo(i64, String),
    /// The topic of this one cannot be used at present.
    BeforeTopic(i64),
    Shutdown,
}

/// Sends these events, each known to the position as released as soon as it is sent.
async fn publish(
    seqs: &[i64],
    reader: &mut Reader,
    forwarder: &mut Forwarder,
    books: &mut Books,
    shutdown: &CancellationToken,
) -> Result<Published, Interruption> {
    let mut rest = seqs;
    while !rest.is_empty() {
        let (page, done) = reader.read_these(rest).await?;
        let mut expected = rest[..done].iter();
        rest = &rest[done..];
        for cells in page.rows(&Shape::Own)? {
            let (cells, mut scratch) = (cells.map_err(damaged)?, Scratch::default());
            let TableRow { row, .. } = Shape::Own.event(&cells, 0, &mut scratch)?;
            match expected.next() {
                Some(seq) if *seq == row.seq => {}
                Some(seq) => return Ok(Published::UpTo(*seq, MISSING.into())),
                None => break,
            }
            loop {
                match forwarder.deliver(&row, false)? {
                    Ok(Delivery::Sent(_)) => {
                        books.progress.released(row.seq);
                        break;
                    }
                    Ok(Delivery::Undeliverable(reason)) => {
                        return Ok(Published::UpTo(row.seq, reason));
                    }
                    Ok(Delivery::TopicWaits(_)) => return Ok(Published::BeforeTopic(row.seq)),
                    Err(hold) => {
                        if !books.attend(forwarder, hold, shutdown).await? {
                            return Ok(Published::Shutdown);
                        }
                    }
                }
            }
            books.cut_if_wanted(forwarder, false).await?;
        }
        if let Some(seq) = expected.next() {
            return Ok(Published::UpTo(*seq, MISSING.into()));
        }
    }
    Ok(Published::All)
}

/// Waits until what was released is durable and off the table; false if `shutdown` came first.
pub(crate) async fn durable(
    forwarder: &mut Forwarder,
    books: &mut Books,
    shutdown: &CancellationToken,
) -> Result<bool, Interruption> {
    if books.progress.settled().released.is_empty() {
        return Ok(true);
    }
    while !books.cut(forwarder).await? {
        if !books.attend(forwarder, Hold::Committing, shutdown).await? {
            return Ok(false);
        }
    }
    while !books.progress.settled().released.is_empty() {
        if !books.attend(forwarder, Hold::Unsettled, shutdown).await? {
            return Ok(false);
        }
        books.store(forwarder).await?;
    }
    Ok(true)
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
        fn nothing_overtakes_an_event_that_still_waits(events in proptest::collection::vec((any::<bool>(), 0u8..3), 0..20)) {
            let events: Vec<Parked> = (1..).zip(&events).map(|(seq, (wrong, action))| event(seq, *wrong, *action)).collect();
            let free = free(&events);
            for event in &events {
                let discarded = event.action == Some(Action::Discard);
                let blocked = events.iter().any(|earlier| earlier.seq <= event.seq && earlier.reason.is_some() && earlier.action.is_none());
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
