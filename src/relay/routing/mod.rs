//! Routing: the topic of an event. Pure.

pub(crate) mod rewrite;
pub(crate) mod template;
