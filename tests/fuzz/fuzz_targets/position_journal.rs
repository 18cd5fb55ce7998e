//! Fuzz target: `tidings::fuzzing::position_journal` must return for any bytes.
//!
//! `cargo +nightly fuzz run --sanitizer none --fuzz-dir tests/fuzz position_journal`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidings::fuzzing::position_journal(bytes));
