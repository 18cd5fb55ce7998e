//! Actions of a step: a command with its replies, or a local function.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::event::{DomainEvent, Envelope, EnvelopeError};
use crate::saga::machine::ActionShape;
use crate::saga::signature::ActionSignature;
use crate::subscriber::{HandlerError, Meta, Tx};

type Make<S> = Arc<dyn Fn(&S) -> Result<Envelope, EnvelopeError> + Send + Sync>;

/// Applies a reply to the state. Returns `Some` with the reason if the reply refuses the step.
type Take<S> = Arc<dyn Fn(&mut S, &Meta) -> Result<Option<String>, HandlerError> + Send + Sync>;

pub(crate) type Called<S> = Pin<Box<dyn Future<Output = Result<S, HandlerError>> + Send>>;

pub(crate) type Local<S> = Arc<dyn Fn(S, Tx) -> Called<S> + Send + Sync>;

/// Aggregate and event types of a start event or a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::saga) struct Kind {
    pub(in crate::saga) aggregate: &'static str,
    pub(in crate::saga) types: &'static [&'static str],
}

/// Action of a step, forward or back.
#[derive(Clone)]
pub(in crate::saga) enum Action<S> {
    Nothing,
    Remote {
        sends: &'static [&'static str],
        make: Make<S>,
        replies: Vec<Reply<S>>,
    },
    Local(Local<S>),
}

/// A reply that completes or refuses a step.
#[derive(Clone)]
pub(in crate::saga) struct Reply<S> {
    pub(in crate::saga) kind: Kind,
    pub(in crate::saga) take: Take<S>,
}

impl Kind {
    pub(super) fn of<E: DomainEvent>() -> Self {
        Self {
            aggregate: E::AGGREGATE,
            types: E::TYPES,
        }
    }
}

impl<S> Action<S> {
    /// Returns `true` if an event of this type replies to the action.
    pub(in crate::saga) fn takes(&self, event_type: &str) -> bool {
        self.replies()
            .iter()
            .any(|reply| reply.kind.types.contains(&event_type))
    }

    pub(super) fn replies(&self) -> &[Reply<S>] {
        match self {
            Self::Remote { replies, .. } => replies,
            _ => &[],
        }
    }

    pub(super) fn signature(&self) -> ActionSignature {
        let owned = |types: &[&str]| {
            types
                .iter()
                .map(|event_type| (*event_type).to_owned())
                .collect()
        };
        match self {
            Self::Nothing => ActionSignature::default(),
            Self::Local(_) => ActionSignature {
                local: true,
                ..ActionSignature::default()
            },
            Self::Remote { sends, replies, .. } => {
                let types: Vec<&str> = replies
                    .iter()
                    .flat_map(|reply| reply.kind.types)
                    .copied()
                    .collect();
                ActionSignature {
                    local: false,
                    sends: owned(sends),
                    replies: owned(&types),
                }
            }
        }
    }

    pub(super) fn shape(&self) -> ActionShape {
        match self {
            Self::Nothing => ActionShape::Nothing,
            Self::Remote { replies, .. } => ActionShape::Remote(
                replies
                    .iter()
                    .flat_map(|reply| reply.kind.types)
                    .copied()
                    .collect(),
            ),
            Self::Local(_) => ActionShape::Local,
        }
    }
}

pub(super) fn remote<S, C: DomainEvent>(
    command: impl Fn(&S) -> C + Send + Sync + 'static,
) -> Action<S> {
    Action::Remote {
        sends: C::TYPES,
        make: Arc::new(move |state| Envelope::of(&command(state))),
        replies: Vec::new(),
    }
}

/// Creates a reply that completes the action.
pub(super) fn done<S, E: DomainEvent>(
    take: impl Fn(&mut S, E) + Send + Sync + 'static,
) -> Reply<S> {
    reply::<S, E>(move |state, event| {
        take(state, event);
        None
    })
}

pub(super) fn reply<S, E: DomainEvent>(
    take: impl Fn(&mut S, E) -> Option<String> + Send + Sync + 'static,
) -> Reply<S> {
    Reply {
        kind: Kind::of::<E>(),
        take: Arc::new(move |state, meta| Ok(take(state, meta.decode()?))),
    }
}
