//! Fuzz target: `tidings::fuzzing::framing` must return for any bytes.
//!
//! `cargo +nightly fuzz run --sanitizer none --fuzz-dir tests/fuzz framing`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidings::fuzzing::framing(bytes));
