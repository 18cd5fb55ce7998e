//! Offsets: which records are finished, and where a group starts.
//!
//! `watermark` and `metadata` are pure.

pub(crate) mod catch_up;
pub(crate) mod metadata;
pub(crate) mod start_offsets;
pub(crate) mod watermark;
