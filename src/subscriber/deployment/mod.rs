//! Old and new code side by side: which event types the other instances of the group handle.
//!
//! `instances` is all SQL on the table `subscriber`, `held_types` decides which types an instance must not skip (pure),
//! `unhandled` keeps such events for the instances that handle them, and `unknown_types` reports types that none handles.

pub(crate) mod held_types;
pub(crate) mod instances;
pub(crate) mod unhandled;
pub(crate) mod unknown_types;
