//! How a subscriber runs, with each default's reason.

pub(crate) mod kill_switch;
pub(crate) mod retry;

use std::time::Duration;

use super::{KillSwitch, Retry};

/// Which events wait for each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// Events of one aggregate (one key) are handled one after the other, in the order of their partition; others run beside them. Events without a key have no order.
    #[default]
    Aggregate,
    /// Events of one partition are handled one after the other.
    Partition,
    /// No event waits for another.
    None,
}

/// What becomes of an event that failed as often as [`Retry`] allows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Escalation {
    /// The event and the later ones of its aggregate are set aside in the table `detour` and handled from there, in order, with longer pauses. Needs an inbox and
    /// [`Order::Aggregate`], and is the default there. When these attempts are used up too, the event is dead and the next of its aggregate is tried.
    Park(Retry),
    /// The event is sent to `<topic>.<group>.retry.<delay>`, one after the other, and handled from there. **Later events of its aggregate overtake it.**
    RetryTopics(Vec<Duration>),
    /// The event is dead at once.
    DeadLetter,
}

impl Escalation {
    /// [`Park`](Self::Park) with ten attempts from ten seconds to ten minutes apart: three quarters of an hour.
    pub fn park() -> Self {
        Self::Park(Retry::exponential(
            10,
            Duration::from_secs(10)..Duration::from_secs(600),
        ))
    }

    /// Its name for operators.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Park(_) => "park",
            Self::RetryTopics(_) => "retry topics",
            Self::DeadLetter => "dead letter",
        }
    }

    /// [`RetryTopics`](Self::RetryTopics) with these delays.
    pub fn retry_topics(delays: impl IntoIterator<Item = Duration>) -> Self {
        Self::RetryTopics(delays.into_iter().collect())
    }
}

/// Everything that is a number or a choice.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) order: Order,
    pub(crate) retry: Retry,
    pub(crate) escalation: Option<Escalation>,
    pub(crate) kill_switch: Option<KillSwitch>,
    /// Pause at an event of a version that this code does not know.
    pub(crate) wait_for_newer_code: bool,
    /// How many handlers run at once, over all partitions. Each with an inbox holds a connection.
    pub(crate) concurrency: Option<usize>,
    /// How many events one transaction handles at most.
    pub(crate) batch: usize,
    /// How many events of one partition are read and not finished.
    pub(crate) buffer: usize,
    /// How long what runs may take when the partition is given up or the subscriber ends.
    pub(crate) drain: Duration,
    /// What is finished is committed this often.
    pub(crate) commit_interval: Duration,
}

impl Options {
    /// More than one, since one slow handler must not be the whole service; more help only handlers that wait.
    pub(crate) const CONCURRENCY: usize = 64;
    /// With an inbox: what a Postgres of a few cores commits at once.
    pub(crate) const CONCURRENCY_WITH_INBOX: usize = 16;
    /// Enough aggregates to keep the handlers busy.
    pub(crate) const BUFFER: usize = 1_024;
    /// The same in bytes, for large events.
    pub(crate) const BUFFER_BYTES: usize = 16 << 20;
    /// How far one unfinished record may be behind the last: what commits can tell is bounded.
    pub(crate) const SPAN: usize = 32_768;

    pub(crate) fn concurrency(&self, inbox: bool) -> usize {
        self.concurrency
            .unwrap_or(if inbox {
                Self::CONCURRENCY_WITH_INBOX
            } else {
                Self::CONCURRENCY
            })
            .max(1)
    }

    /// What becomes of an event that used up its attempts.
    pub(crate) fn escalation(&self, inbox: bool) -> Escalation {
        match &self.escalation {
            Some(escalation) => escalation.clone(),
            None if inbox && self.order == Order::Aggregate => Escalation::park(),
            None => Escalation::DeadLetter,
        }
    }
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            order: Order::Aggregate,
            retry: Retry::default(),
            escalation: None,
            kill_switch: Some(KillSwitch::default()),
            wait_for_newer_code: false,
            concurrency: None,
            batch: 1,
            buffer: Self::BUFFER,
            // Well within the five minutes that a member may take (`max.poll.interval.ms`), and the thirty seconds that Kubernetes gives.
            drain: Duration::from_secs(20),
            commit_interval: Duration::from_secs(1),
        }
    }
}
