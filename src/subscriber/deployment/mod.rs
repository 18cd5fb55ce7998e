//! Deployments with old and new code side by side: event types that other instances of the group
//! handle.
//!
//! ```text
//! event without a handler ─▶ unhandled: may this instance skip its type?
//!                              instances: the registered instances, read from the database
//!                              held_types: the types that they still need
//!                        ─▶ no: parked.   yes: skipped, and reported by unknown_types
//! ```
//!
//! | file | content |
//! |---|---|
//! | `instances` | registration of instances: all SQL for the table `subscriber` |
//! | `held_types` | the decision: types that an instance must not skip. Pure |
//! | `unhandled` | the outcome for one event: skipped, or kept for an instance that handles it |
//! | `unknown_types` | reports of types that no instance handles |

pub(crate) mod held_types;
pub(crate) mod instances;
pub(crate) mod unhandled;
pub(crate) mod unknown_types;
