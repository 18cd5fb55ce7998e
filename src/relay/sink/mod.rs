//! Where events go, and when they are safe there.
//!
//! A sink takes records in order. *Cut* says: what was sent since the last cut belongs together, and after it the relay stands at this
//! position. A batch is *durable* when nothing can take it back; only then may its position be stored in Postgres and log be
//! confirmed. Accepted is not durable, and neither is acknowledged.
//!
//! ```text
//!                 at least once                         exactly once
//! send            idempotent produce                    the same, in a Kafka transaction
//! cut             remembers the position                sends the position to the relay's own topic, waits for the acknowledgements,
//!                                                       and commits, while another producer sends the next batch
//! durable         everything before is acknowledged     committed
//! after a crash   goes on from the row in Postgres,     goes on from the topic: what was not committed is invisible to readers
//!                 repeats what was under way            of committed records, and is sent again
//! ```

mod at_least_once;
mod exactly_once;
mod sender;
mod watch;

use std::{future::Future, pin::Pin, sync::Arc};

use at_least_once::Marks;
use exactly_once::Transactions;
use sender::Sender;
pub(crate) use sender::Sent;
use tokio::task::JoinHandle;

use super::{
    RelayOptions,
    error::Interruption,
    position::{Journal, Position},
};
use crate::kafka::{Acks, Failure, Producer, Record, SendError, Transactional};

/// Producers that take turns with exactly once: one sends while one commits, and one has its last transaction's markers written.
pub(crate) const PRODUCERS: usize = 3;

/// What was sent between two cuts.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Where the relay stands after it.
    pub(crate) position: Box<Position>,
    /// Records by route.
    pub(crate) counts: Vec<u64>,
    /// The timestamp of its position's record, milliseconds.
    pub(crate) at: i64,
}

/// What has become durable.
#[derive(Debug)]
pub(crate) struct Durable {
    pub(crate) batch: Batch,
    /// The number of the position's record in the relay's own topic; zero with delivery at least once.
    pub(crate) number: u64,
}

/// Takes records, and says when they are safe.
pub(crate) struct Sink {
    sender: Sender,
    commits: Commits,
    _watch: Watch,
}

enum Commits {
    AtLeastOnce(Marks),
    ExactlyOnce(Box<Transactions>),
}

/// The task that watches the producers, ended with them.
struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Sink {
    /// A sink with producers of its own. With transactional ids it delivers exactly once: each of the [`producers`](Self::producers) must
    /// fence off its predecessors, then [`write_positions`](Self::write_positions), before the first record.
    ///
    /// # Errors
    /// A property that librdkafka refuses.
    pub(crate) fn open(
        options: &RelayOptions,
        batch_bytes_max: usize,
        transactional: &[Transactional<'_>],
    ) -> Result<Self, Interruption> {
        let sender = Sender::open(options, batch_bytes_max, transactional)?;
        let commits = if transactional.is_empty() {
            Commits::AtLeastOnce(Marks::default())
        } else {
            Commits::ExactlyOnce(Box::default())
        };
        let watch = watch::watch(
            sender.producers().to_vec(),
            sender.acks().clone(),
            options.kafka.clone(),
        );
        Ok(Self {
            sender,
            commits,
            _watch: Watch(tokio::spawn(watch)),
        })
    }

    /// The producers, which take turns with exactly once.
    pub(crate) fn producers(&self) -> &[Arc<Producer>] {
        self.sender.producers()
    }

    /// Which of them sends the next record.
    pub(crate) fn turn(&self) -> usize {
        self.sender.turn()
    }

    pub(crate) fn acks(&self) -> &Arc<Acks> {
        self.sender.acks()
    }

    /// Where positions are written, and after which one.
    pub(crate) fn write_positions(&mut self, topic: String, journal: Journal) {
        if let Commits::ExactlyOnce(transactions) = &mut self.commits {
            transactions.write_positions(topic, journal);
        }
    }

    /// Sends a record; never waits.
    ///
    /// # Errors
    /// When the producer refuses it for another reason than a full window.
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

    /// The tag after the last record, and below which everything is acknowledged.
    pub(crate) fn tags(&self) -> (u64, u64) {
        (self.sender.next(), self.acks().floor())
    }

    /// Whether it is time for a cut; `idle` says that the source has nothing more at the moment.
    pub(crate) fn wants_cut(&self, idle: bool) -> bool {
        match &self.commits {
            Commits::AtLeastOnce(marks) => marks.wants_cut(&self.sender, idle),
            Commits::ExactlyOnce(transactions) => transactions.wants_cut(&self.sender, idle),
        }
    }

    /// Whether a cut without records costs more than remembering it.
    pub(crate) fn cuts_cost(&self) -> bool {
        matches!(self.commits, Commits::ExactlyOnce(_))
    }

    /// What was sent so far belongs together. The batch comes back if those before are not far enough: try again.
    pub(crate) fn cut(&mut self, batch: Batch) -> Result<(), Batch> {
        match &mut self.commits {
            Commits::AtLeastOnce(marks) => marks.cut(&self.sender, batch),
            Commits::ExactlyOnce(transactions) => return transactions.cut(&mut self.sender, batch),
        }
        Ok(())
    }

    /// What has become durable since the last call.
    pub(crate) fn durable(&mut self) -> Option<Durable> {
        match &mut self.commits {
            Commits::AtLeastOnce(marks) => marks.durable(&self.sender),
            Commits::ExactlyOnce(transactions) => transactions.durable(),
        }
    }

    /// Waits until half of the window is free and a record of `bytes` fits, or the producer failed.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) fn room(&self, bytes: usize) -> impl Future<Output = ()> + Send + use<> {
        self.sender.room(bytes)
    }

    /// Waits until everything sent is acknowledged, or the producer failed.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) fn acknowledged(&self) -> impl Future<Output = ()> + Send + use<> {
        self.sender.acknowledged()
    }

    /// Waits until a record may be sent after one was told to wait for a batch before it, or the producer failed.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) fn admitted(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        match &self.commits {
            Commits::AtLeastOnce(_) => Box::pin(std::future::ready(())),
            Commits::ExactlyOnce(transactions) => Box::pin(transactions.admitted()),
        }
    }

    /// Whether everything that was cut has been told as durable.
    pub(crate) fn is_settled(&self) -> bool {
        match &self.commits {
            Commits::AtLeastOnce(marks) => marks.is_settled(),
            Commits::ExactlyOnce(transactions) => transactions.is_settled(),
        }
    }

    /// Waits until every cut is durable, or the producer failed.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) fn settled(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        match &self.commits {
            Commits::AtLeastOnce(_) => Box::pin(self.sender.acknowledged()),
            Commits::ExactlyOnce(transactions) => Box::pin(transactions.settled()),
        }
    }

    /// Why the producer can go no further, once it cannot.
    pub(crate) fn failure(&self) -> Option<Interruption> {
        let of_commit = match &self.commits {
            Commits::AtLeastOnce(_) => None,
            Commits::ExactlyOnce(transactions) => transactions.failure(),
        };
        // A commit fails because of a record that was refused, not the other way round.
        let failure = match (self.acks().failure(), of_commit) {
            (Some(refused @ (Failure::Refused(_) | Failure::Untimely(_))), _) => Some(refused),
            (of_records, of_commit) => of_commit.or(of_records),
        };
        failure.map(|failure| match failure {
            Failure::Broken(reason) => Interruption::Kafka(reason),
            Failure::Fenced => Interruption::Kafka(
                "the producer is fenced off: another relay of this name has begun to produce, or a transaction was open for too long and the cluster has aborted it"
                    .into(),
            ),
            Failure::Refused(reason) => Interruption::BatchRefused(reason),
            Failure::Untimely(topic) => Interruption::Untimely(topic),
        })
    }
}
