//! The binary `tidings`.

mod config;
