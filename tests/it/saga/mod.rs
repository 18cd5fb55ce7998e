//! Sagas on real services: what the tables say decides.

mod blocked;
mod deployments;
mod grants;
mod guide;
mod killed;
mod kit;
mod local;
mod metrics;
mod notices;
mod operator;
mod owners;
mod replies;
mod running;
mod shop;
