//! Fuzz target: `tidings::fuzzing::offset_metadata` must return for any bytes.
//!
//! `cargo +nightly fuzz run --sanitizer none --fuzz-dir tests/fuzz offset_metadata`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidings::fuzzing::offset_metadata(bytes));
