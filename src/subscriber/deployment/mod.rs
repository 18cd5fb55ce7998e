//! Deployments with old and new code side by side: event types that other instances of the group
//! handle.
//!
//! | file | content |
//! |---|---|
//! | `instances` | registration of instances: all SQL for the table `subscriber` |
//! | `held_types` | types that an instance must not skip. Pure |
//! | `unhandled` | events that are kept for the instances that handle them |
//! | `unknown_types` | reports of types that no instance handles |

pub(crate) mod held_types;
pub(crate) mod instances;
pub(crate) mod unhandled;
pub(crate) mod unknown_types;
