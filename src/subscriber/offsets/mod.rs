//! Offsets: the finished records, and the start position of a group.
//!
//! `watermark` and `metadata` are pure.

pub(crate) mod catch_up;
pub(crate) mod metadata;
pub(crate) mod start_offsets;
pub(crate) mod watermark;
