//! Decoders of external bytes, each as a function that accepts any bytes. They are fuzz targets,
//! and the seeded test of [`tests`] runs them.
//!
//! A target returns normally for every input: no panic, no allocation beyond a multiple of the
//! input's size, no loop longer than the input.

/// Decodes bytes of a server, split into pieces of any size, as frames of a stream and as messages
/// before the stream.
pub fn framing(bytes: &[u8]) {
    crate::postgres::replication::fuzz_framing(bytes);
}

/// Decodes bytes as one message of the stream, and the row of an insert as an outbox row.
pub fn pgoutput(bytes: &[u8]) {
    crate::relay::fuzz_row(bytes);
}

/// Decodes bytes as a binary COPY of the outbox, and as the rows of one. A fuzzer does not find the
/// header by itself.
pub fn copy(bytes: &[u8]) {
    crate::relay::fuzz_copy(bytes);
    crate::relay::fuzz_copy(&[&*crate::postgres::copy_header(), bytes].concat());
}

/// Decodes bytes as a Kafka record. Each line of the form `name: value` is a header; the value
/// follows an empty line.
pub fn record(bytes: &[u8]) {
    let record = crate::kafka::fuzz_record(bytes);
    #[cfg(feature = "subscriber")]
    crate::subscriber::fuzz_dead_letter(record);
    #[cfg(not(feature = "subscriber"))]
    drop(record);
}

/// Decodes bytes as the metadata of a committed offset: eight bytes of the offset, then the text.
#[cfg(feature = "subscriber")]
pub fn offset_metadata(bytes: &[u8]) {
    crate::subscriber::fuzz_offset_metadata(bytes);
}

/// Decodes bytes as records of a position topic, one per line.
pub fn position_journal(bytes: &[u8]) {
    crate::relay::fuzz_position_journal(bytes);
}

#[cfg(test)]
mod tests;
