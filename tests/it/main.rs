//! Everything that needs real services, in one binary: they are started once.

mod cli;
mod relay;
mod services;
