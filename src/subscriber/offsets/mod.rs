//! Offsets: the finished records, and the start position of a group.
//!
//! | file | content |
//! |---|---|
//! | `watermark` | the finished records of a partition, and the offset to commit. Pure |
//! | `metadata` | finished records beyond that offset, as text in the commit. Pure |
//! | `start_offsets` | the first offsets of a group that starts at the end |
//! | `catch_up` | the check that a group has handled everything up to given offsets |
//!
//! `consume/group.rs` commits.

pub(crate) mod catch_up;
pub(crate) mod metadata;
pub(crate) mod start_offsets;
pub(crate) mod watermark;
