//! The servers start, answer, survive what a test does to them, and never outlive their owner.

mod owner;
mod private;
mod wire;
