//! The replication protocol: one connection that creates slots, runs simple queries and streams the write-ahead log.
//!
//! ```text
//! connect ─▶ (TLS) ─▶ authenticate ─▶ IDENTIFY_SYSTEM, CREATE_REPLICATION_SLOT, … ─▶ START_REPLICATION ─▶ frames
//! ```
//!
//! The socket is read here and not by a client library, because *when* it is read decides the throughput: a walsender whose
//! reader waits in `recv` pays a wake-up for every message, one whose reader lets the socket fill streams twice as fast.
//! `stream.rs` only offers both kinds of reading; the relay decides.

mod auth;
mod binding;
mod connection;
mod dial;
mod error;
mod framing;
mod pass;
mod pgoutput;
mod stream;
mod tls;
mod wire;

pub(crate) use connection::Connection;
#[cfg(feature = "cli")]
pub(crate) use dial::{Channel, probe};
pub(crate) use error::ReplicationError;
pub(crate) use framing::Frame;
pub(crate) use pass::relay_session;
pub(crate) use pgoutput::{Cell, Column, DecodeError, Message, Relation, Tuple, decode};
pub(crate) use stream::{FrameReader, POSTGRES_EPOCH_MICROS, StatusWriter};
#[cfg(any(test, fuzzing))]
pub(crate) use wire::fuzz_framing;
