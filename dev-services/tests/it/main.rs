//! The servers start, respond, survive the actions of a test, and never outlive their owner.

mod cluster;
mod owner;
mod pair;
mod private;
mod wire;
