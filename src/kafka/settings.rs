//! Where the brokers are, and the librdkafka properties that pass through.

use std::collections::BTreeMap;

/// Where the brokers are, and the librdkafka properties that pass through.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `bootstrap.servers`: `host:port` pairs, comma-separated.
    pub brokers: String,
    /// Any librdkafka property (`security.protocol`, `sasl.username`, …), passed through as it is.
    pub properties: BTreeMap<String, String>,
}

/// One librdkafka property that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PropertyFault {
    /// The property's name.
    pub property: String,
    /// The value as given.
    pub value: String,
    /// What is wrong with it and what to do.
    pub reason: String,
}

impl Settings {
    /// Checks every property with librdkafka: unknown names, values out of range, and those Tidings sets itself.
    pub fn faults(&self) -> Vec<PropertyFault> {
        unimplemented!()
    }
    /// True if the property's value must never be printed (`sasl.password`, `ssl.key.pem`, …).
    pub fn is_secret(_property: &str) -> bool {
        unimplemented!()
    }
}
