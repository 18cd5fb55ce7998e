//! Decoders of outside bytes, each as a function that takes any bytes: fuzz targets, and the seeded test of [`tests`].
//!
//! A target returns normally for every input: no panic, no allocation beyond a multiple of the input, no loop longer than the input.

/// Bytes of a server, in pieces of any size, as a stream's frames and as messages before the stream.
pub fn framing(bytes: &[u8]) {
    crate::postgres::replication::fuzz_framing(bytes);
}

/// Bytes as one message of the stream, and an insert's row as one of the outbox.
pub fn pgoutput(bytes: &[u8]) {
    crate::relay::fuzz_row(bytes);
}

/// Bytes as a binary COPY of the outbox.
pub fn copy(bytes: &[u8]) {
    crate::relay::fuzz_copy(bytes);
}

/// Bytes as a Kafka record: one per line of the form `name: value` a header, after an empty line the value.
pub fn record(bytes: &[u8]) {
    crate::kafka::fuzz_record(bytes);
}

/// Bytes as the metadata of a committed offset: eight of the offset, then the text.
#[cfg(feature = "subscriber")]
pub fn offset_metadata(bytes: &[u8]) {
    crate::subscriber::fuzz_offset_metadata(bytes);
}

/// Bytes as records of a position topic, one per line.
pub fn position_journal(bytes: &[u8]) {
    crate::relay::fuzz_position_journal(bytes);
}

#[cfg(test)]
mod tests;
