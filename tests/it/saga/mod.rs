//! Sagas on real services: what the tables say decides.

mod killed;
mod kit;
mod operator;
mod running;
mod shop;
