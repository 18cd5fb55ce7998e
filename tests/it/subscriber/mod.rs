//! Subscribers on real services. Effects counted in Postgres decide, not the code under test.

mod delivery;
mod example;
mod failures;
mod foreign;
mod members;
pub(crate) mod place;
mod publishing;
mod redrive;
