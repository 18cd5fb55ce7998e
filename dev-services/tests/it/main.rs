//! The servers start, answer, survive what a test does to them, and never outlive their owner.

mod cluster;
mod owner;
mod pair;
mod private;
mod wire;
