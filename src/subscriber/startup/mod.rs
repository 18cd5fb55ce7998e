//! Start of a subscriber: the conditions for joining its group.
//!
//! | file | content |
//! |---|---|
//! | `database_check` | tables, columns, permissions and writability of the inbox's database |
//! | `topics` | topics that exist, that are created, and that are missing |
//! | `leftovers` | retry topics and parked events of an earlier deployment |
//! | `registration` | registration of instances and sagas, each attempt with a time limit |

pub(crate) mod database_check;
pub(crate) mod leftovers;
pub(crate) mod registration;
pub(crate) mod topics;
