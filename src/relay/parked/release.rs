//! The end of a wait: the leader does what a person has decided, aggregate by aggregate, in order.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Aggregate,
    rows::{self, Action, Parked},
};
use crate::{
    failpoint::{self, Step},
    relay::{
        books::Books,
        debezium::{Scratch, Shape},
        error::Interruption,
        forward::{Delivery, Forwarder, Hold},
        source::{Reader, TableRow, damaged},
    },
};

/// Events released at once: their numbers are in one position.
const RELEASED_AT_ONCE: usize = 1_000;

/// How long other events wait for those that are released, at a time.
const AT_A_TIME: Duration = Duration::from_secs(1);

/// What is done with the first events of an aggregate.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    publish: Vec<i64>,
    give_up: Vec<i64>,
}

/// Discarded ones are given up wherever they stand; the others go in order, up to the first one with which something is wrong and of
/// which nothing is decided.
fn plan(events: &[Parked]) -> Plan {
    let give_up = events.iter().filter(|event| event.action == Some(Action::Discard)).map(|event| event.seq).collect();
    let rest = events.iter().filter(|event| event.action != Some(Action::Discard));
    let free = rest.take_while(|event| event.reason.is_none() || event.action == Some(Action::Retry));
    Plan { publish: free.map(|event| event.seq).collect(), give_up }
}

/// Releases what is decided, for a while; false if `shutdown` came first.
///
/// # Errors
/// Whatever interrupts the session.
pub(in crate::relay) async fn release(
    forwarder: &mut Forwarder,
    books: &mut Books,
    shutdown: &CancellationToken,
) -> Result<bool, Interruption> {
    if forwarder.parked().is_empty() {
        return Ok(true);
    }
    let began = Instant::now();
    for aggregate in rows::decided(&mut books.ledger).await? {
        forwarder.parked_mut().make_ready(aggregate);
    }
    let (mut reader, mut later) = (None, Vec::new());
    while let Some(aggregate) = forwarder.parked_mut().next_ready() {
        if books.lost().is_cancelled() {
            return Err(Interruption::LeaseLost);
        }
        let reader = reader.get_or_insert_with(|| Reader::new(forwarder.options(), &Shape::Own));
        match release_some(&aggregate, reader, forwarder, books, shutdown).await? {
            Ended::Shutdown => return Ok(false),
            Ended::Waits => {}
            Ended::More => forwarder.parked_mut().make_ready(aggregate),
            Ended::Later => later.push(aggregate),
        }
        if began.elapsed() > AT_A_TIME {
            break;
        }
    }
    later.into_iter().for_each(|aggregate| forwarder.parked_mut().make_ready(aggregate));
    books.show_parked(forwarder);
    Ok(true)
}

enum Ended {
    /// There may be more to release.
    More,
    /// Nothing waits, or what does needs a person.
    Waits,
    /// The relay has not passed what is to be released.
    Later,
    Shutdown,
}

/// Releases the first events of an aggregate and waits until that is durable.
async fn release_some(
    aggregate: &Aggregate,
    reader: &mut Reader,
    forwarder: &mut Forwarder,
    books: &mut Books,
    shutdown: &CancellationToken,
) -> Result<Ended, Interruption> {
    books.park_pending(forwarder).await?;
    let mut events = rows::first(&mut books.ledger, aggregate, RELEASED_AT_ONCE).await?;
    if events.is_empty() {
        forwarder.parked_mut().free(aggregate);
        return Ok(Ended::Waits);
    }
    // One whose row is not visible yet is not gone. An event that was parked when the relay died, and is met once more, must not be gone by then.
    let position = books.progress.position();
    let passed = events.iter().take_while(|event| event.xid.map_or(!event.lately, |xid| position.covers(xid, event.seq))).count();
    let unpassed = events.split_off(passed);
    let plan = plan(&events);
    if plan == Plan::default() {
        return Ok(if unpassed.is_empty() { Ended::Waits } else { Ended::Later });
    }
    for event in events.iter().filter(|event| event.action == Some(Action::Discard)) {
        tracing::warn!(
            event = %event.id, seq = event.seq, aggregate = format!("{}/{}", aggregate.kind, aggregate.id), reason = event.reason,
            "gives an event up, as it was told to (tidings parked discard)"
        );
        books.progress.released(event.seq);
    }
    // What was refused before is likely to be refused again: alone, so that it is known at once.
    events.iter().filter(|event| event.action == Some(Action::Retry)).for_each(|event| forwarder.suspect(event.seq));
    let failed = match publish(&plan.publish, reader, forwarder, books, shutdown).await? {
        Published::Shutdown => return Ok(Ended::Shutdown),
        Published::All => None,
        Published::UpTo(seq, reason) => Some((seq, reason)),
    };
    if let Some((seq, reason)) = &failed {
        tracing::error!(seq, aggregate = format!("{}/{}", aggregate.kind, aggregate.id), "cannot be delivered after all: {reason}");
        rows::failed(&mut books.ledger, aggregate, *seq, reason).await?;
    }
    failpoint::reached(Step::ReleaseSent);
    let published = plan.publish.iter().take_while(|seq| failed.as_ref().is_none_or(|(failed, _)| *seq != failed));
    let released: Vec<i64> = published.chain(&plan.give_up).copied().collect();
    if !durable(forwarder, books, shutdown).await? {
        return Ok(Ended::Shutdown);
    }
    forwarder.parked_mut().released(aggregate, &released);
    if !released.is_empty() {
        tracing::info!(events = released.len(), aggregate = format!("{}/{}", aggregate.kind, aggregate.id), "parked events are released");
    }
    Ok(if failed.is_some() { Ended::Waits } else { Ended::More })
}

enum Published {
    All,
    /// This one cannot be delivered, for this reason.
    UpTo(i64, String),
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
                match forwarder.deliver(&row)? {
                    Ok(Delivery::Sent(_)) => {
                        books.progress.released(row.seq);
                        break;
                    }
                    Ok(Delivery::Undeliverable(reason)) => return Ok(Published::UpTo(row.seq, reason)),
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

/// Why an event whose row was deleted cannot be released.
const MISSING: &str = "its row is not in the outbox any more: somebody deleted it; discard it";

/// Waits until what was released is durable and off the table; false if `shutdown` came first.
async fn durable(forwarder: &mut Forwarder, books: &mut Books, shutdown: &CancellationToken) -> Result<bool, Interruption> {
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
        Parked { seq, id: uuid::Uuid::nil(), reason: wrong.then(|| "too large".into()), action, xid: None, lately: false }
    }

    proptest! {
        #[test]
        fn nothing_overtakes_an_event_that_still_waits(events in proptest::collection::vec((any::<bool>(), 0u8..3), 0..20)) {
            let events: Vec<Parked> = (1..).zip(&events).map(|(seq, (wrong, action))| event(seq, *wrong, *action)).collect();
            let Plan { publish, give_up } = plan(&events);
            for event in &events {
                let discarded = event.action == Some(Action::Discard);
                prop_assert_eq!(give_up.contains(&event.seq), discarded);
                let blocked = events.iter().any(|earlier| earlier.seq <= event.seq && earlier.reason.is_some() && earlier.action.is_none());
                prop_assert_eq!(publish.contains(&event.seq), !discarded && !blocked);
            }
            prop_assert!(publish.is_sorted());
        }
    }

    #[test]
    fn giving_up_the_event_in_the_way_lets_those_behind_it_go() {
        let events = [event(1, true, 2), event(2, false, 0), event(3, true, 0), event(4, false, 0), event(5, false, 2)];
        assert_eq!(plan(&events), Plan { publish: vec![2], give_up: vec![1, 5] });
    }
}
