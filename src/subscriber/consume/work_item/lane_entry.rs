//! Entries of a lane.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::PartitionContext;
use crate::{
    kafka::{Incoming, Message},
    subscriber::offsets::watermark::Ticket,
};

/// An entry of a lane.
#[derive(Debug)]
pub(crate) enum LaneEntry {
    /// An event that has a handler.
    Event(Ticket, Arc<Message>),
    /// An event that failed in a batch and is now handled alone.
    Single(Ticket, Arc<Message>),
    /// A record that is not an event, with the reason.
    Malformed(Ticket, Box<Incoming>, String),
    /// An event that has no handler here. Another member may handle it.
    Unhandled(Ticket, Arc<Message>),
    /// The oldest event of a parked aggregate. If the aggregate was woken early because an operator
    /// has decided about one of its events, the time at which it is due.
    Parked(Box<[u8]>, Option<Instant>),
}

impl LaneEntry {
    /// Returns the size in bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Event(_, message) | Self::Single(_, message) | Self::Unhandled(_, message) => {
                message.size()
            }
            Self::Malformed(_, record, _) => record.size(),
            Self::Parked(..) => 0,
        }
    }

    pub(crate) fn key(&self) -> Option<&[u8]> {
        match self {
            Self::Event(_, message) | Self::Single(_, message) | Self::Unhandled(_, message) => {
                message.as_it_came().key()
            }
            Self::Malformed(..) | Self::Parked(..) => None,
        }
    }

    /// Returns `true` if one transaction can handle both now, which excludes events that are due
    /// later.
    pub(crate) fn goes_with(&self, other: &Self, context: &PartitionContext) -> bool {
        match (self, other) {
            (Self::Event(_, one), Self::Event(_, other)) => {
                share(one, other, |message| context.due_in(message))
            }
            _ => false,
        }
    }
}

/// Returns `true` if one transaction can handle both: they have the same kind, and neither is due
/// later.
pub(crate) fn share(
    one: &Message,
    other: &Message,
    due_in: impl Fn(&Message) -> Option<Duration>,
) -> bool {
    one.kind() == other.kind() && due_in(one).is_none() && due_in(other).is_none()
}
