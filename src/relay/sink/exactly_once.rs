//! A batch and its position in one Kafka transaction.
//!
//! ```text
//!         first record        cut       acknowledged               committed
//! turn A ─────────────▶ OPEN ────▶ CUT ─────────────▶ COMMITTING ──────────▶
//! turn B                                               first record        cut       A committed
//!                                                     ─────────────▶ OPEN ────▶ CUT ────────────▶
//! ```
//!
//! `cut` sends the position's record. After a failure it is unknown whether a batch is committed.
//! New producers commit or abort it, and the position topic shows the outcome.
//!
//! Producers take turns, one transaction each, for two reasons. While one commits, the records of
//! the next one are already in flight. And the coordinator answers a commit before it has written
//! the transaction's markers. Until they are written, it refuses to add partitions to the same
//! producer's next transaction, and librdkafka retries after 20 ms. Another producer has its own
//! state at the coordinator.
//!
//! Two rules keep the order:
//!
//! - A record is sent once all records of the previous batch are *acknowledged*, so it follows them
//!   in the log.
//! - A batch is committed once the previous one *is committed*, so no position lacks its
//!   predecessors.
//!
//! Readers of committed records do not see a later batch first: they read up to the first record of
//! the oldest transaction whose markers are missing.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    Batch, Durable,
    sender::{Sender, Sent},
};
use crate::{
    failpoint::{self, Step},
    kafka::{Acks, Failure, Headers, OVERDUE, Producer, Record, Window, bounded},
    relay::position::Journal,
};

/// Number of records of a batch while the source has more events. A commit costs about as much as a
/// few hundred records, so its share is small.
const CUT_RECORDS: u64 = 30_000;

/// Bytes of a batch while the source has more events.
const CUT_BYTES: u64 = 32 << 20;

/// Maximum age of a batch: readers of committed records wait for its end.
const CUT_AFTER: Duration = Duration::from_millis(250);

/// Successive batches, each in a transaction.
#[derive(Default)]
pub(super) struct Transactions {
    topic: String,
    journal: Option<Journal>,
    open: Option<Open>,
    /// Number of batches cut so far, and those of them that were not yet returned as durable.
    cut: u64,
    under_way: VecDeque<Durable>,
    reached: watch::Sender<Reached>,
}

/// The open transaction: its start time, the tag of its first record, and the bytes sent before it.
struct Open {
    since: Instant,
    tag: u64,
    bytes: u64,
}

/// Progress of the batches, counted from the first one.
#[derive(Debug, Default)]
pub(super) struct Reached {
    /// Number of positions sent.
    positions: u64,
    acknowledged: u64,
    committed: u64,
    /// The tag after the last committed batch.
    committed_tag: u64,
    failure: Option<Failure>,
}

impl Reached {
    /// Returns `true` if a transaction may begin after `cut` batches: the last one is acknowledged,
    /// and no other one is uncommitted.
    fn admits(&self, cut: u64) -> bool {
        self.acknowledged == cut && cut - self.committed <= 1
    }

    /// Records a failure. The first failure is the cause of those that follow.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    /// Records that the position of a batch was sent.
    pub(super) fn position_sent(&mut self) {
        self.positions += 1;
    }

    /// Records that `batch` batches are committed, which contain all records before `tag`.
    pub(super) fn committed(&mut self, batch: u64, tag: u64) {
        (self.committed, self.committed_tag) = (batch, tag);
    }

    /// Returns the number of uncommitted events among the records before the tag `next`.
    pub(super) fn events(&self, next: u64) -> u64 {
        let positions = self.positions.saturating_sub(self.committed);
        next.saturating_sub(self.committed_tag + positions)
    }

    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }
}

impl Transactions {
    pub(super) fn write_positions(&mut self, topic: String, journal: Journal) {
        self.topic = topic;
        self.journal = Some(journal);
    }

    /// Returns `true` if a record may be sent now. Begins a transaction if none is open.
    pub(super) fn ready(&mut self, sender: &Sender) -> bool {
        if self.open.is_none() && self.reached.borrow().admits(self.cut) {
            self.begin(sender);
        }
        self.open.is_some()
    }

    fn begin(&mut self, sender: &Sender) {
        if let Err(failure) = sender.producer().begin() {
            // The producer also refuses the following record. The failure is reported instead.
            self.fail(failure);
        }
        self.open = Some(Open {
            since: Instant::now(),
            tag: sender.next(),
            bytes: sender.bytes(),
        });
    }

    fn fail(&self, failure: Failure) {
        self.reached.send_modify(|reached| reached.fail(failure));
    }

    pub(super) fn should_end_batch(&self, sender: &Sender, idle: bool) -> bool {
        let Some(Open { since, tag, bytes }) = &self.open else {
            return false;
        };
        let records = sender.next() - tag;
        records > 0
            && (idle
                || records >= CUT_RECORDS
                || sender.bytes() - bytes >= CUT_BYTES
                || since.elapsed() >= CUT_AFTER)
    }

    /// Ends the batch with its position and starts its commit. Returns the batch if no transaction
    /// may begin yet.
    pub(super) fn cut(&mut self, sender: &mut Sender, batch: Batch) -> Result<(), Batch> {
        if !self.ready(sender) {
            return Err(batch);
        }
        let Some(Open {
            since: opened,
            tag: first,
            ..
        }) = self.open.take()
        else {
            unreachable!("ready")
        };
        let journal = self
            .journal
            .as_mut()
            .expect("positions are written before the first record");
        let (key, value) = journal.write(&batch.position);
        let number = journal.number();
        let record = Record {
            topic: &self.topic,
            partition: 0,
            key: key.as_bytes(),
            value: Some(&value),
            headers: Headers::with_capacity(0),
            timestamp: batch.at,
            label: 0,
        };
        let problem = match sender.send_now(record) {
            Ok(Sent::Tag(_)) => None,
            Ok(Sent::Full(_) | Sent::Committing) => Some("the producer's queue is full".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        self.cut += 1;
        self.under_way.push_back(Durable { batch, number });
        if let Some(problem) = problem {
            self.fail(Failure::Broken(format!(
                "sending a position to `{}`: {problem}",
                self.topic
            )));
            return Ok(());
        }
        self.reached.send_modify(Reached::position_sent);
        let (records, cut) = (sender.next() - first, Instant::now());
        let (reached, committing) = (
            self.reached.clone(),
            commit(
                sender.producer().clone(),
                sender.acks().clone(),
                self.reached.clone(),
                (self.cut, sender.next()),
            ),
        );
        #[expect(
            clippy::disallowed_methods,
            reason = "ends with the commit, which has a limit and must not be broken off"
        )]
        tokio::spawn(async move {
            if let Err(failure) = committing.await {
                reached.send_modify(|reached| reached.fail(failure));
            }
            tracing::debug!(
                records,
                open_for = ?opened.elapsed(),
                committed = ?cut.elapsed(),
                "ended a transaction"
            );
        });
        sender.pass_on();
        Ok(())
    }

    /// Returns the batches that have become durable since the last call, as one.
    pub(super) fn durable(&mut self) -> Option<Durable> {
        let committed = self.reached.borrow().committed;
        let mut durable: Option<Durable> = None;
        while self.cut - (self.under_way.len() as u64) < committed
            && let Some(next) = self.under_way.pop_front()
        {
            match &mut durable {
                Some(before) => {
                    before.number = next.number;
                    before.batch.absorb(next.batch);
                }
                None => durable = Some(next),
            }
        }
        durable
    }

    /// Returns `true` if all batches were returned as durable.
    pub(super) fn is_settled(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Waits until a transaction may begin or the producer has failed.
    pub(super) fn admitted(&self) -> impl Future<Output = ()> + Send + use<> {
        let cut = self.cut;
        self.reached(move |reached| reached.admits(cut))
    }

    /// Waits until all batches are committed or the producer has failed.
    pub(super) fn settled(&self) -> impl Future<Output = ()> + Send + use<> {
        let cut = self.cut;
        self.reached(move |reached| reached.committed == cut)
    }

    fn reached<F: Fn(&Reached) -> bool + Send + Sync>(
        &self,
        enough: F,
    ) -> impl Future<Output = ()> + Send + use<F> {
        let mut reached = self.reached.subscribe();
        async move {
            // An error means that the sink was dropped, and with it the caller.
            let _ = reached
                .wait_for(|reached| enough(reached) || reached.failure.is_some())
                .await;
        }
    }

    /// Returns the progress of the batches, which outlives the session.
    pub(super) fn progress(&self) -> watch::Receiver<Reached> {
        self.reached.subscribe()
    }
}

/// Commits a batch once all of its records are acknowledged and the previous batch is committed.
/// `tag` is the one after its last record.
async fn commit(
    producer: Arc<Producer>,
    acks: Arc<Acks>,
    reached: watch::Sender<Reached>,
    (batch, tag): (u64, u64),
) -> Result<(), Failure> {
    acks.settle(Window::default()).await;
    failpoint::reached(Step::PositionSent);
    if let Some(failure) = acks.failure() {
        return Err(failure);
    }
    reached.send_modify(|reached| reached.acknowledged = batch);
    if let Ok(before) = reached
        .subscribe()
        .wait_for(|reached| reached.committed + 1 == batch || reached.failure.is_some())
        .await
        && let Some(failure) = &before.failure
    {
        return Err(failure.clone());
    }
    let limit = producer.commit_timeout() + OVERDUE;
    let committed = bounded("commit_transaction", limit, move || producer.commit()).await;
    failpoint::reached(Step::KafkaCommitted);
    committed.unwrap_or_else(|unanswered| Err(Failure::Broken(unanswered.to_string())))?;
    reached.send_modify(|reached| reached.committed(batch, tag));
    Ok(())
}
