//! Entry of the fuzz target for records.

use super::Message;
use crate::kafka::incoming::{Incoming, Place};

/// Parses arbitrary bytes as a record, for the fuzz target, and returns it. Lines `name: value` are
/// headers; the value follows an empty line.
pub(crate) fn fuzz_record(bytes: &[u8]) -> Incoming {
    let end = bytes
        .windows(2)
        .position(|pair| pair == b"\n\n")
        .unwrap_or(bytes.len());
    let value = bytes.get(end + 2..);
    let headers: Vec<(String, &[u8])> = bytes[..end]
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let colon = line.windows(2).position(|pair| pair == b": ")?;
            Some((
                String::from_utf8_lossy(&line[..colon]).into_owned(),
                &line[colon + 2..],
            ))
        })
        .collect();
    let place = Place {
        topic: "t".into(),
        partition: 0,
        offset: 1,
        timestamp: 2,
    };
    let incoming = Incoming::new(
        place,
        Some(b"k"),
        value,
        headers
            .iter()
            .map(|(name, value)| (name.as_str(), Some(*value))),
    );
    for assumed in [None, Some("Assumed")] {
        if let Ok(message) = Message::read(incoming.clone(), assumed) {
            let _ = (
                message.event_type(),
                message.version(),
                message.id(),
                message.source(),
                message.aggregate_id(),
            );
            let _ = (
                message.aggregate_type(),
                message.time(),
                message.data(),
                message.header("traceparent"),
                message.size(),
            );
        }
    }
    incoming
}
