//! Type-level checks that a subscriber has the inbox and the state that its handlers need.

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Needed {}
    impl Sealed for super::NotNeeded {}
    impl Sealed for super::NoInbox {}
    impl Sealed for super::MissingInbox {}
    impl Sealed for super::HasInbox {}
}

/// Requirement for an inbox: [`Needed`] or [`NotNeeded`].
pub trait Need: sealed::Sealed {
    /// [`Needed`] if this type or the other is [`Needed`].
    type Or<Other: Need>: Need;
    /// The inbox state of a subscriber after a handler with this requirement was added.
    type Apply<I: InboxState>: InboxState;
}

/// An inbox is needed.
#[derive(Clone, Copy, Debug)]
pub enum Needed {}

/// No inbox is needed.
#[derive(Clone, Copy, Debug)]
pub enum NotNeeded {}

impl Need for Needed {
    type Or<Other: Need> = Self;
    type Apply<I: InboxState> = I::WhenNeeded;
}

impl Need for NotNeeded {
    type Or<Other: Need> = Other;
    type Apply<I: InboxState> = I;
}

/// State of a subscriber's inbox: [`NoInbox`], [`MissingInbox`] or [`HasInbox`].
pub trait InboxState: sealed::Sealed {
    /// The state after a handler that needs an inbox was added.
    type WhenNeeded: InboxState;
    /// True if a handler needs an inbox and the subscriber has none.
    #[doc(hidden)]
    const IS_MISSING: bool = false;
}

/// The subscriber has no inbox, and no handler needs one.
#[derive(Clone, Copy, Debug)]
pub enum NoInbox {}

/// The subscriber has no inbox, and a handler needs one.
#[derive(Clone, Copy, Debug)]
pub enum MissingInbox {}

/// The subscriber has an inbox.
#[derive(Clone, Copy, Debug)]
pub enum HasInbox {}

impl InboxState for NoInbox {
    type WhenNeeded = MissingInbox;
}

impl InboxState for MissingInbox {
    type WhenNeeded = Self;
    const IS_MISSING: bool = true;
}

impl InboxState for HasInbox {
    type WhenNeeded = Self;
}

/// Implemented for a subscriber that can run: it has an inbox, or no handler needs one.
#[diagnostic::on_unimplemented(
    message = "a handler of this subscriber needs an inbox, and there is none",
    label = "a handler takes `Tx` or returns events",
    note = "add `.inbox(pool)`: effect, inbox row and published events are then one transaction"
)]
pub trait InboxReady: InboxState {}

impl InboxReady for NoInbox {}
impl InboxReady for HasInbox {}

/// The subscriber has no state yet.
#[derive(Clone, Copy, Debug)]
pub enum NoState {}

/// The subscriber has its state.
#[derive(Clone, Copy, Debug)]
pub enum HasState {}

/// Implemented for a subscriber that can run: it has the state `S` that its handlers take values
/// from.
#[diagnostic::on_unimplemented(
    message = "a handler of this subscriber takes `State` from a `{S}`, and there is none",
    label = "the state is missing",
    note = "add `.state(…)`"
)]
pub trait StateReady<S> {
    /// Returns the state.
    #[doc(hidden)]
    fn ready(given: Option<S>) -> S;
}

impl StateReady<()> for NoState {
    fn ready(_: Option<()>) {}
}

impl<S> StateReady<S> for HasState {
    fn ready(given: Option<S>) -> S {
        given.expect("`HasState` guarantees a state")
    }
}
