//! The replication protocol: a connection that creates slots, runs simple queries and streams the
//! write-ahead log.
//!
//! ```text
//! connect ─▶ (TLS) ─▶ authenticate ─▶ IDENTIFY_SYSTEM, CREATE_REPLICATION_SLOT, …
//!         ─▶ START_REPLICATION ─▶ frames
//! ```
//!
//! Tidings reads the socket itself rather than through a client library, because the time of the
//! reads determines the throughput. If the reader waits in `recv`, the walsender pays a wake-up for
//! every message. If the reader lets the socket fill, the walsender streams twice as fast.
//! `stream.rs` offers both kinds of reads, and the relay chooses.
//!
//! | file | content |
//! |---|---|
//! | `dial`, `tls`, `auth`, `binding` | an authenticated connection; `tls` applies `sslmode` |
//! | `connection`, `wire` | statements on it, and their responses |
//! | `stream`, `framing`, `pgoutput` | the stream: bytes to frames to messages |
//! | `pass` | a connection that the gateway passes to sqlx |

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
