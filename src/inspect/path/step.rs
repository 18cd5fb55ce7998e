//! One step of an event, and its text.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

/// One step of an event.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Step {
    /// `None` if the time is not recorded.
    pub(crate) at: Option<DateTime<Utc>>,
    /// The database that recorded it.
    pub(crate) database: Option<String>,
    #[serde(flatten)]
    pub(crate) kind: StepKind,
}

/// Kind of a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub(crate) enum StepKind {
    Scheduled {
        due_at: DateTime<Utc>,
    },
    Inserted {
        seq: i64,
        xid: String,
    },
    Committed,
    /// The relay has not published it yet.
    Waits {
        relay: String,
    },
    /// The position of the relay includes it.
    Published {
        relay: String,
    },
    Parked {
        relay: String,
        reason: Option<String>,
        tries: i32,
        action: Option<String>,
    },
    Record {
        topic: String,
        partition: i32,
        offset: i64,
    },
    Handled {
        subscriber: String,
    },
    SubscriberParked {
        subscriber: String,
        topic: String,
        partition: i32,
        offset: i64,
        attempts: i32,
        next_attempt_at: DateTime<Utc>,
        error: Option<String>,
    },
    DeadLetter {
        topic: String,
        partition: i32,
        offset: i64,
        reason: String,
        attempts: u32,
    },
    /// The saga that the event belongs to, as it is now.
    Saga {
        id: Uuid,
        name: String,
        status: String,
        at_step: Option<String>,
    },
}

impl StepKind {
    /// Order of steps at the same time, and of those whose time is not recorded.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Inserted { .. } | Self::Scheduled { .. } => 0,
            Self::Committed => 1,
            Self::Waits { .. } | Self::Parked { .. } => 2,
            Self::Published { .. } => 3,
            Self::Record { .. } => 4,
            Self::Handled { .. } => 5,
            Self::SubscriberParked { .. } => 6,
            Self::DeadLetter { .. } => 7,
            Self::Saga { .. } => 8,
        }
    }

    /// Returns the name of the step.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Scheduled { .. } => "scheduled",
            Self::Inserted { .. } => "inserted",
            Self::Committed => "committed",
            Self::Waits { .. } => "waits",
            Self::Published { .. } => "published",
            Self::Parked { .. } | Self::SubscriberParked { .. } => "parked",
            Self::Record { .. } => "in Kafka",
            Self::Handled { .. } => "handled",
            Self::DeadLetter { .. } => "dead letter",
            Self::Saga { .. } => "saga",
        }
    }

    /// Returns the details of the step. The text is not escaped: parts of it come from rows and
    /// records.
    pub(crate) fn detail(&self) -> String {
        match self {
            Self::Scheduled { due_at } => format!("due at {}", moment(*due_at)),
            Self::Inserted { seq, xid } => format!("seq {seq}, transaction {xid}"),
            Self::Committed => String::new(),
            Self::Waits { relay } => format!("relay {relay} has not published it yet"),
            Self::Published { relay } => format!("by relay {relay}"),
            Self::Parked {
                relay,
                reason,
                tries,
                action,
            } => {
                let reason = reason
                    .as_deref()
                    .unwrap_or("waits behind an earlier event of its aggregate");
                let action = action
                    .as_ref()
                    .map_or_else(String::new, |action| format!("; {action} is requested"));
                format!("by relay {relay}, tries {tries}: {reason}{action}")
            }
            Self::Record {
                topic,
                partition,
                offset,
            } => format!("{topic}, partition {partition}, offset {offset}"),
            Self::Handled { subscriber } => format!("by {subscriber}"),
            Self::SubscriberParked {
                subscriber,
                attempts,
                next_attempt_at,
                error,
                ..
            } => {
                let error = error.as_deref().unwrap_or("waits behind an earlier event");
                let next = moment(*next_attempt_at);
                format!("by subscriber {subscriber}, attempts {attempts}, next at {next}: {error}")
            }
            Self::DeadLetter {
                topic,
                partition,
                offset,
                reason,
                attempts,
            } => format!("{topic}, letter {partition}/{offset}, attempts {attempts}: {reason}"),
            Self::Saga {
                id,
                name,
                status,
                at_step,
            } => {
                let step = at_step
                    .as_ref()
                    .map_or_else(String::new, |step| format!(", step {step}"));
                format!("{name} {id} is {status}{step}")
            }
        }
    }
}

/// Formats a time with milliseconds.
pub(crate) fn moment(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S%.3fZ").to_string()
}
