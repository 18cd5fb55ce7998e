//! Events that cannot be handled: they are parked, sent to the dead letters, and replayed from
//! there.

pub(crate) mod dead_letter;
pub(crate) mod parked;
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(crate) mod redrive;
