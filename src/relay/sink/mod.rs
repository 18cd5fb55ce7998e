//! Where events go, and when they are safe there.
//!
//! A sink takes records in order, gives each a tag that counts up by one, and says below which tag everything is *durable*.
//! Accepted is not durable: a position may be stored, and log confirmed to Postgres, only up to what is durable.
//!
//! The seam is the set of methods of [`AtLeastOnce`]: `send`, `room`, `durable`, `drained`, `failure`. A sink with Kafka
//! transactions has the same ones; it needs no other knowledge of sources and positions than the tags.

mod at_least_once;

pub(super) use at_least_once::{AtLeastOnce, Sent};
