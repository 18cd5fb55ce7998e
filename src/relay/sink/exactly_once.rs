//! A batch and its position in one Kafka transaction.
//!
//! ```text
//!          first record            cut: the position's record              everything acknowledged, committed
//! IDLE ───────────────────▶ OPEN ──────────────────────────▶ COMMITTING ─────────────────────────────────────▶ IDLE
//!                                                                 └──▶ FAILED: whether it is committed is not known. A new producer
//!                                                                      ends it one way or the other, and the topic tells which.
//! ```

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::{
    Batch, Durable,
    sender::{Sender, Sent},
};
use crate::{
    failpoint::{self, Step},
    kafka::{Failure, Headers, Record, Window},
    relay::position::Journal,
};

/// Records of a batch while the source has more: a commit costs about as much as a few hundred records, so it vanishes among these.
const CUT_RECORDS: u64 = 30_000;

/// Bytes of a batch while the source has more.
const CUT_BYTES: u64 = 32 << 20;

/// How old a batch may become: readers of committed records wait for its end.
const CUT_AFTER: Duration = Duration::from_millis(250);

/// How long the coordinator is left to write a transaction's markers, which it does after it has answered. A record sent sooner finds the last
/// transaction unfinished, is refused, and librdkafka tries again after 20 ms: 1 % of the transactions, and 9 % of the events at 500 a second.
const MARKERS: Duration = Duration::from_micros(1500);

/// Batches in transactions, one after the other.
pub(super) struct Transactions {
    topic: String,
    journal: Option<Journal>,
    state: State,
    outcome: watch::Sender<Outcome>,
    /// Committed, and not yet asked for.
    finished: Option<Durable>,
}

enum State {
    Idle,
    /// Since when, and with what was sent before: the tag of its first record, and bytes.
    Open {
        since: Instant,
        tag: u64,
        bytes: u64,
    },
    Committing(Option<Durable>),
}

/// What has become of the batch being committed.
#[derive(Clone, Debug)]
enum Outcome {
    UnderWay,
    Committed,
    Failed(Failure),
}

impl Transactions {
    pub(super) fn write_positions(&mut self, topic: String, journal: Journal) {
        self.topic = topic;
        self.journal = Some(journal);
    }

    /// Whether a record may be sent now; begins a transaction if none is open.
    pub(super) fn ready(&mut self, sender: &Sender) -> bool {
        self.finish();
        match self.state {
            State::Open { .. } => true,
            State::Committing(_) => false,
            State::Idle => {
                self.begin(sender);
                true
            }
        }
    }

    fn begin(&mut self, sender: &Sender) {
        if let Err(failure) = sender.producer().begin() {
            // The record that follows is refused by the producer too; the failure is what is reported.
            self.outcome.send_replace(Outcome::Failed(failure));
        }
        self.state = State::Open { since: Instant::now(), tag: sender.next(), bytes: sender.bytes() };
    }

    pub(super) fn wants_cut(&self, sender: &Sender, idle: bool) -> bool {
        let State::Open { since, tag, bytes } = &self.state else { return false };
        let records = sender.next() - tag;
        records > 0 && (idle || records >= CUT_RECORDS || sender.bytes() - bytes >= CUT_BYTES || since.elapsed() >= CUT_AFTER)
    }

    /// Ends the batch with its position and has it committed.
    pub(super) fn cut(&mut self, sender: &mut Sender, batch: Batch) -> Result<(), Batch> {
        self.finish();
        match self.state {
            State::Committing(_) => return Err(batch),
            State::Open { .. } => {}
            State::Idle => self.begin(sender),
        }
        let State::Open { since: opened, tag: first, .. } = self.state else { unreachable!("just begun") };
        let journal = self.journal.as_mut().expect("positions are written before the first record");
        let (key, value) = journal.write(&batch.position);
        let number = journal.number();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        let headers = Headers::with_capacity(0);
        let record =
            Record { topic: &self.topic, partition: 0, key: key.as_bytes(), value: Some(&value), headers, timestamp: now, label: 0 };
        let problem = match sender.send_now(record) {
            Ok(Sent::Tag(_)) => None,
            Ok(Sent::Full(_) | Sent::Committing) => Some("the producer's queue is full".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        self.state = State::Committing(Some(Durable { batch, number }));
        if let Some(problem) = problem {
            self.outcome.send_replace(Outcome::Failed(Failure::Broken(format!("sending a position to `{}`: {problem}", self.topic))));
            return Ok(());
        }
        self.outcome.send_if_modified(|outcome| {
            let fine = !matches!(outcome, Outcome::Failed(_));
            if fine {
                *outcome = Outcome::UnderWay;
            }
            fine
        });
        let (producer, outcome) = (sender.producer().clone(), self.outcome.clone());
        let (records, cut) = (sender.next() - first, Instant::now());
        tokio::spawn(async move {
            producer.acks().settle(Window::default()).await;
            let acknowledged = cut.elapsed();
            failpoint::reached(Step::PositionSent);
            let result = match producer.acks().failure() {
                Some(failure) => Err(failure),
                None => {
                    let committed = tokio::task::spawn_blocking(move || producer.commit()).await;
                    failpoint::reached(Step::KafkaCommitted);
                    committed.unwrap_or_else(|error| Err(Failure::Broken(format!("committing to Kafka: {error}"))))
                }
            };
            tracing::debug!(records, open_for = ?opened.elapsed(), ?acknowledged, committed = ?cut.elapsed(), "ends a transaction");
            tokio::time::sleep(MARKERS).await;
            outcome.send_replace(match result {
                Ok(()) => Outcome::Committed,
                Err(failure) => Outcome::Failed(failure),
            });
        });
        Ok(())
    }

    /// Takes note of a commit.
    fn finish(&mut self) {
        let State::Committing(batch) = &mut self.state else { return };
        if !matches!(*self.outcome.borrow(), Outcome::Committed) {
            return;
        }
        match (&mut self.finished, batch.take()) {
            (Some(before), Some(next)) => {
                before.number = next.number;
                before.batch.absorb(next.batch);
            }
            (finished, batch) => *finished = batch.or_else(|| finished.take()),
        }
        self.state = State::Idle;
    }

    pub(super) fn durable(&mut self) -> Option<Durable> {
        self.finish();
        self.finished.take()
    }

    /// Waits until the batch being committed is durable, or the producer failed.
    pub(super) fn settled(&self) -> impl Future<Output = ()> + Send + use<> {
        let waits = matches!(self.state, State::Committing(_));
        let mut outcome = self.outcome.subscribe();
        async move {
            if waits {
                // An error would say that the sink is gone, and with it whoever waits.
                let _ = outcome.wait_for(|outcome| !matches!(outcome, Outcome::UnderWay)).await;
            }
        }
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        match &*self.outcome.borrow() {
            Outcome::Failed(failure) => Some(failure.clone()),
            Outcome::UnderWay | Outcome::Committed => None,
        }
    }
}

impl Default for Transactions {
    fn default() -> Self {
        let (outcome, _) = watch::channel(Outcome::Committed);
        Self { topic: String::new(), journal: None, state: State::Idle, outcome, finished: None }
    }
}
