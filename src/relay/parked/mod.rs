//! Events that cannot be delivered, and what waits behind them.
//!
//! One bad event stops its own aggregate and nothing else. The event and every later one of its aggregate are *parked*: set aside by reference
//! in a table, while the position passes them and the outbox keeps their rows. Nothing passes before it is parked:
//!
//! ```text
//! found before sending     name, headers, size ──▶ INSERT, committed ──▶ the position passes it
//! its topic is unusable    set aside for the topic (`waits_for`), as above ──▶ released as soon as the topic can be used (`topics`)
//! many wait behind it      one row for a range of the outbox (`to_seq`), listed one by one again when they are released
//! refused by the broker    the batch is aborted, the session starts again from what is durable
//!                          ──▶ the suspects, which the batch held, go one by one (`forward/batch_isolation.rs`) ──▶ the one refused alone is parked, as above
//! released                 a person sets `retry` or `discard` ──▶ the leader publishes the aggregate's events in their order; their numbers
//!                          are in the position that is committed with them (`Position::released`) ──▶ DELETE ──▶ and out of the position
//! ```
//!
//! So a kill at any point repeats nothing: an event that was parked and not passed is met again and is parked already; one that was
//! released and not deleted is in the position that the next session reads.
//!
//! The order is that of `seq`, which is each aggregate's order (writers lock it before they publish). An event with a smaller number than the
//! first one parked is earlier, was not delivered when its batch was aborted, and goes.
//!
//! `set` (what is parked) is pure, `rows` is the table's SQL, `release` ends the wait, `dead_letter` is the
//! other policy.

pub(crate) mod dead_letter;
pub(crate) mod set;
pub(crate) mod store;
