//! Fuzz target: the decoder and the row reader must return for any message of the replication
//! stream and never panic.
//!
//! `cargo +nightly fuzz run --sanitizer none --fuzz-dir tests/fuzz pgoutput`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidings::fuzzing::pgoutput(bytes));
