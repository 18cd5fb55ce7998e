//! Kafka: the only folder that names rdkafka.

mod settings;

pub use settings::{PropertyFault, Settings};
