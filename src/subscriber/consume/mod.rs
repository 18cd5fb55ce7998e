//! Consumption: from the membership in a group to one work item.
//!
//! | file | content |
//! |---|---|
//! | `supervision` | runs one member after the other until the subscriber stops |
//! | `group` | the polling thread: membership, commits, drain of revoked partitions |
//! | `assignment_wait` | the report of a member that waits for partitions |
//! | `missing_topics` | subscribed topics that do not exist yet |
//! | `topic_role` | the purpose for which a topic is read |
//! | `partition` | one partition: its feed, its lanes, its watermark |
//! | `lanes` | one lane per aggregate. Pure |
//! | `work_item` | one work item and its outcome |
//! | `message_pool` | memory that is reused from one event to the next |

pub(crate) mod assignment_wait;
pub(crate) mod group;
pub(crate) mod lanes;
pub(crate) mod message_pool;
pub(crate) mod missing_topics;
pub(crate) mod partition;
pub(crate) mod supervision;
pub(crate) mod topic_role;
pub(crate) mod work_item;
