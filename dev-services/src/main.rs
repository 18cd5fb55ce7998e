//! `cargo services run -- CMD`.
fn main() {}
