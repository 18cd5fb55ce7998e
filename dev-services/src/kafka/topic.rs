//! One topic per test. The requests are sent in Kafka's own protocol, so that a test that uses this
//! crate does not compile librdkafka for it.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use crate::{Error, Services, names};

/// API keys and versions: the oldest that Kafka 4 accepts.
const CREATE: [u8; 4] = [0, 19, 0, 2];
const DELETE: [u8; 4] = [0, 20, 0, 1];

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Time for the broker, in its request and for its response.
const BROKER_MILLIS: u32 = 20_000;
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Larger than any response here.
const ANSWER_BYTES_MAX: u32 = 1 << 16;

/// The error code of a topic that exists already.
const EXISTS: i16 = 36;

/// A topic of one test. It is deleted with this value.
#[derive(Debug)]
pub struct Topic {
    name: String,
    brokers: String,
}

impl Services {
    /// Creates a topic with a name that no other test uses. It is deleted with the returned value.
    ///
    /// The function blocks for some milliseconds. It can be called from asynchronous code.
    ///
    /// # Errors
    ///
    /// Returns an error if no broker of `KAFKA_BROKERS` accepts a connection without TLS and SASL,
    /// which this function does not support, or if the broker refuses.
    pub fn topic(&self, partitions: u16) -> Result<Topic, Error> {
        let (name, brokers) = (names::unique("topic"), self.brokers());
        let created = exchange(&brokers, &create(&name, partitions));
        created
            .and_then(|answer| refusal(&answer).map_or(Ok(()), Err))
            .map_err(Error::system("create the topic of a test"))?;
        Ok(Topic { name, brokers })
    }
}

impl Topic {
    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

// === impl Drop ===

impl Drop for Topic {
    fn drop(&mut self) {
        // A topic that cannot be deleted does not fail the test that has ended.
        let _ = exchange(&self.brokers, &delete(&self.name));
    }
}

/// Encodes CreateTopics with one replica.
fn create(name: &str, partitions: u16) -> Vec<u8> {
    [
        &header(CREATE)[..],
        &1u32.to_be_bytes(),
        &text(name),
        &u32::from(partitions).to_be_bytes(),
        &1u16.to_be_bytes(),
        // Neither assignments of replicas nor settings.
        &[0; 8],
        &BROKER_MILLIS.to_be_bytes(),
        // Not only a validation.
        &[0],
    ]
    .concat()
}

/// Encodes DeleteTopics.
fn delete(name: &str) -> Vec<u8> {
    [
        &header(DELETE)[..],
        &1u32.to_be_bytes(),
        &text(name),
        &BROKER_MILLIS.to_be_bytes(),
    ]
    .concat()
}

/// Encodes API, version, correlation id and the name of the client.
fn header(api: [u8; 4]) -> Vec<u8> {
    [&api[..], &7u32.to_be_bytes(), &text("tidings-testing")].concat()
}

/// Encodes a string: its length in two bytes, then its bytes.
fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("a short name");
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}

/// Returns the refusal in a response to CreateTopics: after correlation id, throttle time and the
/// number of topics come the name, the error code and its text.
fn refusal(answer: &[u8]) -> Option<io::Error> {
    let at = |from: usize| -> Option<usize> {
        let bytes = answer.get(from..from + 2)?;
        Some(usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    };
    let Some(name_bytes) = at(12) else {
        return Some(io::ErrorKind::InvalidData.into());
    };
    let code = at(14 + name_bytes).and_then(|code| u16::try_from(code).ok());
    match code.map(u16::cast_signed) {
        Some(0) => None,
        Some(EXISTS) => Some(io::Error::other("the topic exists already")),
        Some(code) => {
            let from = 16 + name_bytes;
            let length = at(from).unwrap_or_default();
            let reason = answer.get(from + 2..from + 2 + length).unwrap_or_default();
            let reason = String::from_utf8_lossy(reason);
            let text = format!("Kafka's error {code}: {reason}");
            Some(io::Error::other(text))
        }
        None => Some(io::ErrorKind::InvalidData.into()),
    }
}

/// Sends a request to the first broker that accepts a connection. Returns its response.
fn exchange(brokers: &str, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut last = io::Error::other(format!("`{brokers}` names no broker"));
    for broker in brokers.split(',') {
        let addresses = match broker.trim().to_socket_addrs() {
            Ok(addresses) => addresses,
            Err(error) => {
                last = error;
                continue;
            }
        };
        for address in addresses {
            match exchange_with(address, request) {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

fn exchange_with(address: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut broker = TcpStream::connect_timeout(&address, CONNECT_LIMIT)?;
    broker.set_read_timeout(Some(ANSWER_LIMIT))?;
    let length = u32::try_from(request.len()).expect("a short request");
    broker.write_all(&length.to_be_bytes())?;
    broker.write_all(request)?;
    let mut length = [0; 4];
    broker.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > ANSWER_BYTES_MAX {
        let text = "the response is not one of Kafka: does the broker require TLS?";
        return Err(io::Error::other(text));
    }
    let mut answer = vec![0; length as usize];
    broker.read_exact(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A response to CreateTopics with an error code and its text.
    fn answer(code: i16, reason: &str) -> Vec<u8> {
        [
            &[0; 8][..],
            &1u32.to_be_bytes(),
            &text("order"),
            &code.to_be_bytes(),
            &text(reason),
        ]
        .concat()
    }

    #[test]
    fn a_refusal_has_the_reason_of_the_broker() {
        assert!(refusal(&answer(0, "")).is_none());
        let text = |answer: &[u8]| refusal(answer).map(|error| error.to_string());
        assert_eq!(
            text(&answer(29, "not you")).as_deref(),
            Some("Kafka's error 29: not you")
        );
        assert_eq!(text(&answer(-1, "")).as_deref(), Some("Kafka's error -1: "));
        assert!(text(&[0; 9]).is_some(), "a truncated response");
    }
}
