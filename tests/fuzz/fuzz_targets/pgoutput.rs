//! Fuzz target: the decoder and the row reader must return for any message of the replication
//! stream and never panic.
//!
//! `cargo +nightly fuzz run --sanitizer none --fuzz-dir tests/fuzz pgoutput -- -max_total_time=60`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidings::fuzzing::pgoutput(bytes));
