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
mod connection;
mod error;
mod pgoutput;
mod stream;
mod tls;

pub(crate) use connection::Connection;
pub(crate) use error::ReplicationError;
pub(crate) use pgoutput::{Cell, Column, DecodeError, Message, Relation, Tuple, decode};
pub(crate) use stream::{Frame, FrameReader, POSTGRES_EPOCH_MICROS, StatusWriter};
