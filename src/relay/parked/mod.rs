//! Undeliverable events, and the events that wait behind them.
//!
//! An undeliverable event stops only its own aggregate. The event and every later one of its
//! aggregate are *parked*: a table refers to them, the position passes them, and the outbox keeps
//! their rows. The position never passes an event before it is parked:
//!
//! ```text
//! found before sending     name, headers, size ──▶ INSERT, committed ──▶ the position passes it
//! its topic is unusable    parked for the topic (`waits_for`), as above
//!                          ──▶ released as soon as the topic is usable
//! many wait behind it      one row for a range of the outbox (`to_seq`), listed singly at release
//! refused by the broker    the batch is aborted, the session restarts from the durable position
//!                          ──▶ each record of that batch is sent alone
//!                              (`pipeline/publisher/batch_isolation.rs`)
//!                          ──▶ a record that is refused alone is parked, as above
//! released                 an operator sets `retry` or `discard`
//!                          ──▶ the leader publishes the aggregate's events in order; their numbers
//!                              are in the position committed with them (`Position::released`)
//!                          ──▶ DELETE ──▶ removed from the position
//! ```
//!
//! A kill at any point therefore repeats nothing. An event that was parked and not passed is read
//! again, and is already parked. An event that was released and not deleted is in the position that
//! the next session reads.
//!
//! The order is that of `seq`, which is the order of each aggregate (writers lock the aggregate
//! before they publish). An event with a smaller number than the first parked one is earlier. It
//! was not delivered because its batch was aborted, and is sent.
//!
//! | file | content |
//! |---|---|
//! | `set` | the parked events in memory. Pure |
//! | `store` | the table's SQL |
//! | `dead_letter` | the alternative to parking |
//!
//! `source/parked.rs` and `source/parked_topics.rs` release events.

pub(crate) mod dead_letter;
pub(crate) mod set;
pub(crate) mod store;
