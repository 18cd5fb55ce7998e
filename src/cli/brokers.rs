//! Kafka settings of a command.

use super::config::Config;
use super::exit::Failure;
use crate::kafka;

/// Returns the Kafka settings of a command that requires them.
pub(super) fn settings(config: &Config) -> Result<&kafka::Settings, Failure> {
    config.kafka.as_ref().ok_or_else(|| {
        Failure::Failed("no brokers are configured: set --brokers or KAFKA_BROKERS".into())
    })
}
