//! Upper limit of the walsender: a reader that streams the slot and discards the data.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread::sleep,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::net::TcpSocket;

use crate::harness::Outcome;

/// As small as the relay's. This limits the data in flight, and one read empties a full socket.
const RECEIVE_BUFFER_BYTES: u32 = 64 * 1024;

/// Time that the socket is left to fill.
const NAP: Duration = Duration::from_millis(4);

/// A shorter read means that the socket was almost empty.
const FULL_READ: usize = 48 * 1024;

/// Strategy of reading the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Reads as soon as data arrives, like `pg_recvlogical`.
    AsItComes,
    /// Waits for the socket to fill before each read.
    Napping,
}

/// Returns the events per second, from the first message to the last of `events` inserts.
pub(crate) async fn measure(
    port: u16,
    database: &str,
    slot: &str,
    events: u64,
    reading: Reading,
) -> Outcome<f64> {
    let mut socket = connect(port).await?;
    let mut out = BytesMut::new();
    let parameters = [
        ("user", "postgres"),
        ("database", database),
        ("replication", "database"),
        ("options", "-c wal_sender_timeout=0"),
    ];
    frontend::startup_message(parameters, &mut out)?;
    // With trust authentication the server requests no password and responds to the query once it
    // is ready.
    let start = format!(
        r#"START_REPLICATION SLOT "{slot}" LOGICAL 0/0
           (proto_version '1', publication_names 'tidings', binary 'true')"#
    );
    frontend::query(&start, &mut out)?;
    socket.write_all(&out)?;
    let mut frames = Frames::default();
    let mut first = None;
    while frames.inserts < events {
        let read = frames.fill(&mut socket)?;
        frames.count()?;
        if frames.inserts > 0 {
            first.get_or_insert_with(|| (Instant::now(), frames.inserts));
        }
        if reading == Reading::Napping && read < FULL_READ {
            sleep(NAP);
        }
    }
    let (at, counted) = first.ok_or("an empty backlog")?;
    Ok((frames.inserts - counted) as f64 / at.elapsed().as_secs_f64())
}

async fn connect(port: u16) -> Outcome<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    socket.set_nodelay(true)?;
    let stream = socket
        .connect(([127, 0, 0, 1], port).into())
        .await?
        .into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Messages from the socket. Only the inserts are counted.
struct Frames {
    buffer: Vec<u8>,
    end: usize,
    inserts: u64,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            buffer: vec![0; 1 << 20],
            end: 0,
            inserts: 0,
        }
    }
}

impl Frames {
    fn fill(&mut self, socket: &mut TcpStream) -> Outcome<usize> {
        let read = socket.read(&mut self.buffer[self.end..])?;
        if read == 0 {
            return Err("the server ended the stream".into());
        }
        self.end += read;
        Ok(read)
    }

    fn count(&mut self) -> Outcome<()> {
        let mut start = 0;
        while let [tag, a, b, c, d, ..] = self.buffer[start..self.end] {
            let next = start + 1 + u32::from_be_bytes([a, b, c, d]) as usize;
            if next > self.end {
                break;
            }
            let body = &self.buffer[start + 5..next];
            match (tag, body.first()) {
                (b'E', _) => return Err(String::from_utf8_lossy(body).into_owned().into()),
                // XLogData has 25 bytes before the message. The tag of an insert is `I`.
                (b'd', Some(b'w')) if body.get(25) == Some(&b'I') => self.inserts += 1,
                _ => {}
            }
            start = next;
        }
        self.buffer.copy_within(start..self.end, 0);
        self.end -= start;
        Ok(())
    }
}
