//! Readers of topics that never join a group. A [`TopicReader`] measures the ends of partitions,
//! reads up to them, and then stops.
//!
//! | file | content |
//! |---|---|
//! | `topic_reader` | the client: offset queries, and the start of a read |
//! | `bounded` | parts of partitions, read to their ends |
//! | `log` | one partition from an offset to its end |
//! | `commits` | a topic from the commits of a group without members to its end |
//! | `unhandled` | the first records that a group has not handled |
//! | `groups` | groups that have not read a topic to its end |
//! | `backlog` | commits and ends of many topics, without records |
//! | `parts` | given parts of many topics |
//! | `search` | a topic from a time on, with limits |
//! | `follow` | many topics without an end |

#[cfg(feature = "cli")]
mod backlog;
mod bounded;
mod commits;
#[cfg(feature = "cli")]
mod follow;
#[cfg(feature = "cli")]
mod groups;
mod log;
#[cfg(feature = "cli")]
mod parts;
#[cfg(feature = "cli")]
mod search;
mod topic_reader;
mod unhandled;

#[cfg(feature = "cli")]
pub(crate) use self::{
    backlog::backlog,
    bounded::Part,
    follow::follow,
    groups::{Behind, Read, groups_behind},
    parts::{PartEnd, extents, offsets_at, read_parts},
    search::{RecordSearch, SearchEnd, search_records},
};
pub(crate) use self::{
    log::read_to_the_end,
    topic_reader::{Isolation, SILENCE_MAX, TopicReader},
    unhandled::Unhandled,
};
