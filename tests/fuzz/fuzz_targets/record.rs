//! Fuzz target: `tidings::fuzzing::record` must return for any bytes.
//!
//! `cargo +nightly fuzz run --sanitizer none --fuzz-dir tests/fuzz record`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidings::fuzzing::record(bytes));
