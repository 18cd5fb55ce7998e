//! The output of `tidings grants` suffices for each role, and each right of it is needed. The
//! relay's rights are tested in `relay/grants.rs` and `relay/acls.rs`, and those of sagas in
//! `saga/grants.rs`.

mod migrator;
mod operator;
mod subscriber;
