//! Routing: the topic of an event. Pure.
//!
//! `template` renders the topic and keeps the state of each used topic, `rewrite` replaces the
//! template with a regular expression. `kafka/partitioner.rs` selects the partition.

pub(crate) mod rewrite;
pub(crate) mod template;
