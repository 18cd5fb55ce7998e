//! Fuzz target: `tidings::fuzzing::copy` must return for any bytes.
//!
//! `cargo +nightly fuzz run --sanitizer none --fuzz-dir tests/fuzz copy`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidings::fuzzing::copy(bytes));
