//! A batch and its position in one Kafka transaction.
//!
//! ```text
//!         first record             cut: the position's record               everything acknowledged              committed
//! turn A ──────────────▶ OPEN ───────────────────────────────▶ CUT ─────────────────────────────────▶ COMMITTING ──────────▶
//! turn B                                                                     first record             cut     A is committed
//!                                                                    ────────────────────────▶ OPEN ───────▶ CUT ───────────▶ COMMITTING …
//!
//! FAILED: whether a batch is committed is not known. New producers end it one way or the other, and the topic tells which.
//! ```
//!
//! Producers take turns, a transaction each, for two reasons. While one commits, the next one's records are under way already. And the
//! coordinator answers a commit before it has written the transaction's markers, and refuses the same producer the partitions of its next
//! transaction until then; librdkafka asks again after 20 ms. Another producer has a coordinator state of its own.
//!
//! Order is kept by two rules. A record is sent when everything of the batch before is *acknowledged*, so that the log has it behind; and
//! a batch is committed when the one before *is committed*, so that no position is without its predecessors. Readers of committed records
//! do not see a later batch first: they read to the first record of the oldest one whose markers are missing.

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

/// Records of a batch while the source has more: a commit costs about as much as a few hundred records, so it vanishes among these.
const CUT_RECORDS: u64 = 30_000;

/// Bytes of a batch while the source has more.
const CUT_BYTES: u64 = 32 << 20;

/// How old a batch may become: readers of committed records wait for its end.
const CUT_AFTER: Duration = Duration::from_millis(250);

/// Batches in transactions, one after the other.
#[derive(Default)]
pub(super) struct Transactions {
    topic: String,
    journal: Option<Journal>,
    open: Option<Open>,
    /// Batches cut so far, and the last of them: those that were not told as durable.
    cut: u64,
    under_way: VecDeque<Durable>,
    reached: watch::Sender<Reached>,
}

/// The transaction that takes records: since when it is open, and what was sent before, as the tag of its first record and bytes.
struct Open {
    since: Instant,
    tag: u64,
    bytes: u64,
}

/// How far the batches have come, counted from the first one.
#[derive(Debug, Default)]
struct Reached {
    acknowledged: u64,
    committed: u64,
    failure: Option<Failure>,
}

impl Reached {
    /// Whether a transaction may begin behind `cut` batches: the last one is acknowledged, and at most that one is not committed.
    fn admits(&self, cut: u64) -> bool {
        self.acknowledged == cut && cut - self.committed <= 1
    }

    /// The first failure is the reason for those that follow.
    fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }
}

impl Transactions {
    pub(super) fn write_positions(&mut self, topic: String, journal: Journal) {
        self.topic = topic;
        self.journal = Some(journal);
    }

    /// Whether a record may be sent now; begins a transaction if none is open.
    pub(super) fn ready(&mut self, sender: &Sender) -> bool {
        if self.open.is_none() && self.reached.borrow().admits(self.cut) {
            self.begin(sender);
        }
        self.open.is_some()
    }

    fn begin(&mut self, sender: &Sender) {
        if let Err(failure) = sender.producer().begin() {
            // The record that follows is refused by the producer too; the failure is what is reported.
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

    pub(super) fn wants_cut(&self, sender: &Sender, idle: bool) -> bool {
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

    /// Ends the batch with its position and has it committed.
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
        let headers = Headers::with_capacity(0);
        let record = Record {
            topic: &self.topic,
            partition: 0,
            key: key.as_bytes(),
            value: Some(&value),
            headers,
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
        let (records, cut) = (sender.next() - first, Instant::now());
        let (reached, committing) = (
            self.reached.clone(),
            commit(
                sender.producer().clone(),
                sender.acks().clone(),
                self.reached.clone(),
                self.cut,
            ),
        );
        tokio::spawn(async move {
            if let Err(failure) = committing.await {
                reached.send_modify(|reached| reached.fail(failure));
            }
            tracing::debug!(records, open_for = ?opened.elapsed(), committed = ?cut.elapsed(), "ends a transaction");
        });
        sender.pass_on();
        Ok(())
    }

    /// What has become durable since the last call.
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

    /// Whether everything cut was told as durable.
    pub(super) fn is_settled(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Waits until a transaction may begin, or the producer failed.
    pub(super) fn admitted(&self) -> impl Future<Output = ()> + Send + use<> {
        let cut = self.cut;
        self.reached(move |reached| reached.admits(cut))
    }

    /// Waits until every batch that was cut is durable, or the producer failed.
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
            // An error would say that the sink is gone, and with it whoever waits.
            let _ = reached
                .wait_for(|reached| enough(reached) || reached.failure.is_some())
                .await;
        }
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        self.reached.borrow().failure.clone()
    }
}

/// Commits a batch once everything of it is acknowledged and the one before is committed.
async fn commit(
    producer: Arc<Producer>,
    acks: Arc<Acks>,
    reached: watch::Sender<Reached>,
    batch: u64,
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
    reached.send_modify(|reached| reached.committed = batch);
    Ok(())
}
