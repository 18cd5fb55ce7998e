//! Whether a handler needs an inbox, and whether its subscriber has one: as types.

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Needed {}
    impl Sealed for super::NotNeeded {}
    impl Sealed for super::NoInbox {}
    impl Sealed for super::MissingInbox {}
    impl Sealed for super::HasInbox {}
}

/// Whether an inbox is needed: [`Needed`] or [`NotNeeded`].
pub trait Need: sealed::Sealed {
    /// Needed if this or the other needs it.
    type Or<Other: Need>: Need;
    /// What becomes of a subscriber that is given such a handler.
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

/// Whether a subscriber has an inbox.
pub trait InboxState: sealed::Sealed {
    /// The same once a handler needs one.
    type WhenNeeded: InboxState;
    /// A handler needs one, and there is none.
    #[doc(hidden)]
    const IS_MISSING: bool = false;
}

/// It has none, and no handler needs one.
#[derive(Clone, Copy, Debug)]
pub enum NoInbox {}

/// It has none, and a handler needs one.
#[derive(Clone, Copy, Debug)]
pub enum MissingInbox {}

/// It has one.
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

/// A subscriber can run: it has an inbox, or no handler needs one.
#[diagnostic::on_unimplemented(
    message = "a handler of this subscriber needs an inbox, and there is none",
    label = "a handler takes `Tx` or returns events",
    note = "add `.inbox(pool)`: effect, inbox row and published events are then one transaction"
)]
pub trait InboxReady: InboxState {}

impl InboxReady for NoInbox {}
impl InboxReady for HasInbox {}

/// A subscriber was given no state.
#[derive(Clone, Copy, Debug)]
pub enum NoState {}

/// A subscriber was given its state.
#[derive(Clone, Copy, Debug)]
pub enum HasState {}

/// A subscriber can run: it has the state `S` that its handlers take from.
#[diagnostic::on_unimplemented(
    message = "a handler of this subscriber takes `State` from a `{S}`, and there is none",
    label = "the state is missing",
    note = "add `.state(…)`"
)]
pub trait StateReady<S> {
    /// The state.
    #[doc(hidden)]
    fn ready(given: Option<S>) -> S;
}

impl StateReady<()> for NoState {
    fn ready(_: Option<()>) {}
}

impl<S> StateReady<S> for HasState {
    fn ready(given: Option<S>) -> S {
        given.expect("the type says that it was given")
    }
}
