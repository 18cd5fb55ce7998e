//! Kafka: the only folder that names rdkafka.

#[cfg(feature = "cli")]
mod probe;
mod settings;

#[cfg(feature = "cli")]
pub(crate) use probe::{Cluster, Topic};
pub use settings::{PropertyFault, Settings};
