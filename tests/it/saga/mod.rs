//! Sagas on real services: what the tables say decides.

mod grants;
mod guide;
mod killed;
mod kit;
mod local;
mod metrics;
mod operator;
mod running;
mod shop;
