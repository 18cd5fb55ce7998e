//! Options of a subscriber, and the reason for each default.

pub(crate) mod kill_switch;
pub(crate) mod retry;

use std::time::Duration;

use super::{KillSwitch, Retry};

/// The set of events that are handled one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// Events of one aggregate (one key) are handled one after the other, in the order of their
    /// partition. Different aggregates run concurrently. Events without a key have no order.
    #[default]
    Aggregate,
    /// Events of one partition are handled one after the other.
    Partition,
    /// No event waits for another.
    None,
}

/// The next step for an event that has failed as often as [`Retry`] allows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Escalation {
    /// The event and the later ones of its aggregate are parked in the table `subscriber_parked`
    /// and handled
    /// from there, in order, with longer pauses. Requires an inbox and [`Order::Aggregate`], and is
    /// the default with both. When these attempts are used up too, the event becomes a dead letter
    /// and the next event of its aggregate is tried.
    Park(Retry),
    /// The event is sent to the topics `<topic>.<group>.retry.<delay>`, one after the other, and
    /// handled from there. **Later events of its aggregate overtake it.**
    RetryTopics(Vec<Duration>),
    /// The event becomes a dead letter at once.
    DeadLetter,
}

impl Escalation {
    /// Returns [`Park`](Self::Park) with ten attempts, from ten seconds to ten minutes apart: about
    /// three quarters of an hour in total.
    pub fn park() -> Self {
        Self::Park(Retry::exponential(
            10,
            Duration::from_secs(10)..Duration::from_secs(600),
        ))
    }

    /// Returns the name that operators see.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Park(_) => "park",
            Self::RetryTopics(_) => "retry topics",
            Self::DeadLetter => "dead letter",
        }
    }

    /// Returns [`RetryTopics`](Self::RetryTopics) with these delays.
    pub fn retry_topics(delays: impl IntoIterator<Item = Duration>) -> Self {
        Self::RetryTopics(delays.into_iter().collect())
    }
}

/// The relation between the span of a handler and the span that published the event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceRelation {
    /// The handler's span is a child: a request and all its effects are one trace.
    #[default]
    Child,
    /// The handler's span begins a trace of its own that links to the publisher's span. Choose it
    /// if one request causes thousands of events, which makes a single trace unreadable.
    Link,
}

/// All numeric settings and choices of a subscriber.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) order: Order,
    pub(crate) retry: Retry,
    pub(crate) escalation: Option<Escalation>,
    pub(crate) kill_switch: Option<KillSwitch>,
    /// Pause at an event of a newer version than this code supports, instead of making it a dead
    /// letter.
    pub(crate) wait_for_newer_code: bool,
    /// The relation between the span of an attempt and the publisher's.
    pub(crate) trace: TraceRelation,
    /// Maximum number of handlers that run at once, over all partitions. With an inbox, each of
    /// them holds a connection.
    pub(crate) concurrency: Option<usize>,
    /// Maximum number of events per transaction.
    pub(crate) batch: usize,
    /// Maximum number of events per partition that are read and not finished.
    pub(crate) buffer: usize,
    /// Time that running handlers have to finish when the partition is revoked or the subscriber
    /// stops.
    pub(crate) drain: Duration,
    /// Interval between commits of finished offsets.
    pub(crate) commit_interval: Duration,
}

impl Options {
    /// More than one, so that one slow handler does not block the whole service. A higher number
    /// helps only handlers that wait for I/O.
    pub(crate) const CONCURRENCY: usize = 64;
    /// Default with an inbox: the number of concurrent commits that a Postgres server with a few
    /// cores sustains.
    pub(crate) const CONCURRENCY_WITH_INBOX: usize = 16;
    /// Enough events to have work for all handlers from different aggregates.
    pub(crate) const BUFFER: usize = 1_024;
    /// Maximum size in bytes of the events that wait per partition, for topics with large events.
    pub(crate) const BUFFER_BYTES: usize = 16 << 20;
    /// Maximum number of records from the first unfinished one to the last, because the metadata of
    /// a commit is bounded.
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

    /// Returns the escalation in effect: the configured one, or the default.
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
            trace: TraceRelation::Child,
            concurrency: None,
            batch: 1,
            buffer: Self::BUFFER,
            // Well below the five minutes that a member may take (`max.poll.interval.ms`), and
            // below the thirty seconds that Kubernetes allows for termination.
            drain: Duration::from_secs(20),
            commit_interval: Duration::from_secs(1),
        }
    }
}
