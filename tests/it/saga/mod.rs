//! Sagas on real services. The content of the tables decides, not the code under test.

mod blocked;
mod deployments;
mod encodings;
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
