//! Sinks: sending of events to Kafka, and their durability.
//!
//! A sink takes records in order. A *cut* ends a batch: it combines the records since the last cut
//! with the relay's position after them. A batch is *durable* when nothing can revert it. Only then
//! may its position be stored in Postgres and the log be confirmed. Acceptance of a record by the
//! client is not durability, and neither is the acknowledgement of a single record.
//!
//! ```text
//!                at least once                      exactly once
//! send           idempotent produce                 the same, in a Kafka transaction
//! cut            remembers the position             sends the position to the relay's own topic,
//!                                                   waits for the acknowledgements and commits,
//!                                                   while another producer sends the next batch
//! durable        everything before is acknowledged  committed
//! after a crash  continues from the row in          continues from the topic: uncommitted
//!                Postgres, and repeats records      records are invisible to readers of committed
//!                that were in flight                records, and are sent again
//! ```

mod at_least_once;
mod exactly_once;
pub(crate) mod outstanding;
mod sender;
mod watch;

use std::{future::Future, pin::Pin, sync::Arc};

use at_least_once::AckedBatches;
use exactly_once::Transactions;
pub(crate) use outstanding::Outstanding;
use sender::Sender;
pub(crate) use sender::Sent;

use super::{
    RelayOptions,
    error::Interruption,
    position::{Journal, Position},
};
use crate::{
    kafka::{Acks, Failure, Producer, Record, SendError, Transactional},
    task::OwnedTask,
};

/// Producers that take turns with delivery exactly once: one sends, one commits, and the
/// coordinator writes the markers of the third one's last transaction.
pub(crate) const PRODUCERS: usize = 3;

/// Records between two cuts.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The relay's position after it.
    pub(crate) position: Box<Position>,
    /// Number of records by route.
    pub(crate) counts: Vec<u64>,
    /// The timestamp of the position's record, in milliseconds.
    pub(crate) at: i64,
}

/// Batches that have become durable.
#[derive(Debug)]
pub(crate) struct Durable {
    pub(crate) batch: Batch,
    /// The number of the position's record in the relay's own topic. Zero with delivery at least
    /// once.
    pub(crate) number: u64,
}

/// Sends records and reports their durability.
pub(crate) struct Sink {
    sender: Sender,
    commits: Commits,
    outstanding: Outstanding,
    /// Watches the producers, and ends with them.
    _watch: OwnedTask<()>,
}

enum Commits {
    AtLeastOnce(AckedBatches),
    ExactlyOnce(Box<Transactions>),
}

impl Sink {
    /// Opens a sink with its own producers. With transactional ids, it delivers exactly once.
    /// Before the first record, each of the [`producers`](Self::producers) must then fence off its
    /// predecessors, and [`write_positions`](Self::write_positions) must be called.
    ///
    /// # Errors
    ///
    /// Returns an error if librdkafka refuses a property.
    pub(crate) fn open(
        options: &RelayOptions,
        batch_bytes_max: usize,
        transactional: &[Transactional<'_>],
    ) -> Result<Self, Interruption> {
        let sender = Sender::open(options, batch_bytes_max, transactional)?;
        let acks = sender.acks().clone();
        let (commits, outstanding) = if transactional.is_empty() {
            let batches = AckedBatches::default();
            let outstanding = Outstanding::of_records(acks);
            (Commits::AtLeastOnce(batches), outstanding)
        } else {
            let transactions = Box::<Transactions>::default();
            let outstanding = Outstanding::of_batches(acks, transactions.progress());
            (Commits::ExactlyOnce(transactions), outstanding)
        };
        let watch = watch::watch(
            sender.producers().to_vec(),
            sender.acks().clone(),
            options.kafka.clone(),
        );
        Ok(Self {
            sender,
            commits,
            outstanding,
            _watch: OwnedTask::spawn(watch),
        })
    }

    /// Returns the producers, which take turns with delivery exactly once.
    pub(crate) fn producers(&self) -> &[Arc<Producer>] {
        self.sender.producers()
    }

    /// Returns the index of the producer that sends the next record.
    pub(crate) fn turn(&self) -> usize {
        self.sender.turn()
    }

    pub(crate) fn acks(&self) -> &Arc<Acks> {
        self.sender.acks()
    }

    /// Sets the topic for positions, and the journal that continues after the last one.
    pub(crate) fn write_positions(&mut self, topic: String, journal: Journal) {
        if let Commits::ExactlyOnce(transactions) = &mut self.commits {
            transactions.write_positions(topic, journal);
        }
    }

    /// Sends a record without waiting.
    ///
    /// # Errors
    ///
    /// Returns an error if the producer refuses the record for another reason than a full window.
    pub(crate) fn send(
        &mut self,
        record: Record<'_>,
        header_bytes: usize,
    ) -> Result<Sent, SendError> {
        if let Commits::ExactlyOnce(transactions) = &mut self.commits
            && !transactions.ready(&self.sender)
        {
            return Ok(Sent::Committing);
        }
        self.sender.send(record, header_bytes)
    }

    /// Returns the tag after the last record, and the tag below which everything is acknowledged.
    pub(crate) fn tags(&self) -> (u64, u64) {
        (self.sender.next(), self.acks().floor())
    }

    /// Returns `true` if it is time for a cut. `idle` means that the source has no more events at
    /// present.
    pub(crate) fn should_end_batch(&self, idle: bool) -> bool {
        match &self.commits {
            Commits::AtLeastOnce(marks) => marks.should_end_batch(&self.sender, idle),
            Commits::ExactlyOnce(transactions) => transactions.should_end_batch(&self.sender, idle),
        }
    }

    /// Returns `true` if a cut without records costs more than storing a position in memory.
    pub(crate) fn batches_cost(&self) -> bool {
        matches!(self.commits, Commits::ExactlyOnce(_))
    }

    /// Ends the batch of the records sent so far. Returns the batch if the previous ones have not
    /// progressed far enough; the caller then tries again.
    pub(crate) fn cut(&mut self, batch: Batch) -> Result<(), Batch> {
        match &mut self.commits {
            Commits::AtLeastOnce(marks) => marks.cut(&self.sender, batch),
            Commits::ExactlyOnce(transactions) => return transactions.cut(&mut self.sender, batch),
        }
        Ok(())
    }

    /// Returns the batches that have become durable since the last call, as one.
    pub(crate) fn durable(&mut self) -> Option<Durable> {
        match &mut self.commits {
            Commits::AtLeastOnce(marks) => marks.durable(&self.sender),
            Commits::ExactlyOnce(transactions) => transactions.durable(),
        }
    }

    /// Waits until half of the window is free and a record of `bytes` fits, or the producer has
    /// failed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub(crate) fn room(&self, bytes: usize) -> impl Future<Output = ()> + Send + use<> {
        self.sender.room(bytes)
    }

    /// Waits until everything sent is acknowledged, or the producer has failed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub(crate) fn acknowledged(&self) -> impl Future<Output = ()> + Send + use<> {
        self.sender.acknowledged()
    }

    /// Waits until a record may be sent after [`Sent::Committing`], or the producer has failed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub(crate) fn admitted(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        match &self.commits {
            Commits::AtLeastOnce(_) => Box::pin(std::future::ready(())),
            Commits::ExactlyOnce(transactions) => Box::pin(transactions.admitted()),
        }
    }

    /// Returns `true` if all batches were returned as durable.
    pub(crate) fn is_settled(&self) -> bool {
        match &self.commits {
            Commits::AtLeastOnce(marks) => marks.is_settled(),
            Commits::ExactlyOnce(transactions) => transactions.is_settled(),
        }
    }

    /// Returns a view of the records that are not durable.
    pub(crate) fn outstanding(&self) -> &Outstanding {
        &self.outstanding
    }

    /// Waits until every batch is durable, or the producer has failed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub(crate) fn settled(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        match &self.commits {
            Commits::AtLeastOnce(_) => Box::pin(self.sender.acknowledged()),
            Commits::ExactlyOnce(transactions) => Box::pin(transactions.settled()),
        }
    }

    /// Returns the reason why the producer cannot continue, if it has failed.
    pub(crate) fn failure(&self) -> Option<Interruption> {
        self.outstanding.failure()
    }
}

impl From<Failure> for Interruption {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Broken(reason) => Self::Kafka(reason),
            Failure::Fenced => Self::Kafka(
                "the producer is fenced off: another relay of this name has started to produce, or \
                 a transaction was open for too long and the cluster has aborted it"
                    .into(),
            ),
            Failure::Refused(reason) => Self::BatchRefused(reason),
            Failure::Untimely(topic) => Self::Untimely(topic),
        }
    }
}
