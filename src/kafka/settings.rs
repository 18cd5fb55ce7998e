//! Addresses of the brokers, and librdkafka properties.

mod properties;

use std::collections::BTreeMap;

use rdkafka::{ClientConfig, error::KafkaError, producer::BaseProducer};

use self::properties::{is_known, refused_by_librdkafka, reserved};

/// Printed in place of a secret.
const HIDDEN: &str = "***";

/// Minimum length of a part of a secret that is hidden by itself. Shorter parts occur in any
/// message.
const SECRET_PART_MIN: usize = 4;

/// Default of `client.id`, which quotas and broker logs show.
const CLIENT_ID: &str = "tidings";

/// Addresses of the brokers, and librdkafka properties.
#[derive(Clone, Default)]
pub struct Settings {
    /// `bootstrap.servers`: `host:port` pairs, comma-separated.
    pub brokers: String,
    /// Any librdkafka properties (`security.protocol`, `sasl.username`, …), passed through
    /// unchanged.
    pub properties: BTreeMap<String, String>,
}

/// A librdkafka property that cannot be used, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PropertyFault {
    /// The name of the property.
    pub property: String,
    /// The value as given, or `***` if it is a secret.
    pub value: String,
    /// The fault and a remedy.
    pub reason: String,
}

/// Default of librdkafka's `receive.message.max.bytes`.
const RECEIVED_BYTES_MAX: usize = 100_000_000;

/// Largest `message.max.bytes` that librdkafka accepts.
const MESSAGE_BYTES_MAX: usize = 1_000_000_000;

/// Limit of the headers that a dead letter adds: the error text twice with 2,000 bytes each, names
/// of a topic and a group with 249 bytes each, id and source, and numbers.
const LETTER_HEADER_BYTES_MAX: usize = 64 * 1024;

impl Settings {
    /// Checks all properties with librdkafka: unknown names, values out of range, and properties
    /// that Tidings sets itself.
    pub fn faults(&self) -> Vec<PropertyFault> {
        self.properties
            .iter()
            .filter_map(|(property, value)| {
                let reason = reserved(property)
                    .map(String::from)
                    .or_else(|| refused_by_librdkafka(property, value))?;
                let value = Self::shown(property, value).to_owned();
                Some(PropertyFault {
                    property: property.clone(),
                    value,
                    reason,
                })
            })
            .collect()
    }

    /// Returns librdkafka's error about the combination of properties (a SASL mechanism without its
    /// user name, a certificate file that does not exist). librdkafka checks it only when a client
    /// is created. Does not connect. Call it if [`faults`](Self::faults) returns nothing.
    pub fn combination_fault(&self) -> Option<String> {
        let mut config = self.client_config();
        config.remove("bootstrap.servers");
        config
            .create::<BaseProducer>()
            .err()
            .map(|error| match error {
                KafkaError::ClientCreation(text) | KafkaError::ClientConfig(_, text, _, _) => {
                    self.without_secrets(&text)
                }
                other => self.without_secrets(&other.to_string()),
            })
    }

    /// Replaces every secret with `***` in a message of librdkafka, which may quote a value or a
    /// part of it.
    fn without_secrets(&self, text: &str) -> String {
        let secrets = self
            .properties
            .iter()
            .filter(|(property, _)| Self::is_secret(property))
            .map(|(_, value)| value.as_str());
        let is_part = |character: char| {
            character.is_whitespace() || matches!(character, '=' | ',' | ';' | '"' | '\'')
        };
        let parts = secrets
            .clone()
            .flat_map(|secret| secret.split(is_part))
            .filter(|part| part.len() >= SECRET_PART_MIN);
        let mut hidden: Vec<&str> = secrets
            .filter(|secret| !secret.is_empty())
            .chain(parts)
            .collect();
        hidden.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        hidden
            .iter()
            .fold(text.to_owned(), |text, secret| text.replace(secret, HIDDEN))
    }

    /// Returns the fault in the list of brokers, if any.
    pub fn brokers_fault(&self) -> Option<String> {
        self.brokers.split(',').map(str::trim).find_map(|broker| {
            let address = broker
                .split_once("://")
                .map_or(broker, |(_, address)| address);
            let (host, port) = match address.rsplit_once(':') {
                Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                    (host, Some(port))
                }
                _ => (address, None),
            };
            match port {
                // It may be a URL that contains a password, so it is not quoted.
                _ if broker.contains('@') => Some(
                    "a broker contains an @; set Kafka's user and password in kafka.properties"
                        .to_owned(),
                ),
                _ if host.is_empty() => Some(
                    "a broker is empty; write host:port, several separated by commas".to_owned(),
                ),
                _ if host.contains(['/', ' ']) => Some(format!("{broker:?} is not host:port")),
                Some(port) if !matches!(port.parse::<u16>(), Ok(1..)) => Some(format!(
                    "{broker:?} has no port between 1 and 65535; write host:port"
                )),
                _ => None,
            }
        })
    }

    /// Returns the value as it may be printed: `***` for a secret, and for an address that contains
    /// a password.
    pub(crate) fn shown<'v>(property: &str, value: &'v str) -> &'v str {
        if Self::is_secret(property) || value.contains('@') {
            HIDDEN
        } else {
            value
        }
    }

    /// Returns `true` if librdkafka has a property of this name.
    pub(crate) fn is_known(property: &str) -> bool {
        is_known(property)
    }

    /// Returns `true` if the property's value must never be printed (`sasl.password`,
    /// `ssl.key.pem`, …).
    ///
    /// The value of a property that librdkafka does not have is treated as a secret, because the
    /// name may be the misspelt name of one.
    pub fn is_secret(property: &str) -> bool {
        if !is_known(property) {
            return true;
        }
        // Matches parts of the name, so that properties of later librdkafka versions are covered
        // too.
        let property = property.to_ascii_lowercase().replace(['_', '-'], ".");
        const MARKS: [&str; 8] = [
            "password",
            "passphrase",
            "secret",
            "key.pem",
            "token",
            "jaas",
            "credential",
            "oauthbearer.config",
        ];
        // Addresses and numbers are not secrets, whatever they refer to.
        let plain = property.ends_with(".url")
            || property.ends_with("client.id")
            || property.ends_with(".seconds");
        !plain && MARKS.iter().any(|mark| property.contains(mark))
    }

    /// Returns librdkafka's name of the compression that producers use. Defaults to `lz4`.
    pub(crate) fn compression(&self) -> &str {
        let given = ["compression.type", "compression.codec"]
            .iter()
            .find_map(|property| self.properties.get(*property));
        given.map_or("lz4", String::as_str)
    }

    /// Returns a client configuration with the brokers, the properties and a `client.id`. Every
    /// client of Tidings starts with it.
    pub(crate) fn client_config(&self) -> ClientConfig {
        self.client_config_over(&[])
    }

    /// Same as [`client_config`](Self::client_config), with the caller's preferred values for
    /// properties that are not set. (Copying the values from a `ClientConfig` would not work,
    /// because its `config_map` hides passwords.)
    pub(crate) fn client_config_over(&self, preferred: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (property, value) in preferred {
            config.set(*property, *value);
        }
        config.set("client.id", CLIENT_ID);
        for (property, value) in &self.properties {
            config.set(property, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    /// Returns the size limit for a record that is written back with headers about its failure. It
    /// covers every record that a consumer with these settings can read, plus
    /// [`LETTER_HEADER_BYTES_MAX`].
    ///
    /// A consumer reads whatever fits into a response (`receive.message.max.bytes`), which
    /// librdkafka raises to `fetch.max.bytes` and `message.max.bytes`. A smaller limit would refuse
    /// records that have already been read. It would not protect anything: the record is in memory,
    /// and the broker has its own limit. A much larger limit would send requests above the broker's
    /// `socket.request.max.bytes` (104,857,600), for which the broker closes the connection.
    pub(crate) fn letter_bytes_max(&self) -> usize {
        let given = |property: &str| {
            self.properties
                .get(property)
                .and_then(|value| value.trim().parse().ok())
        };
        let readable = [
            "receive.message.max.bytes",
            "fetch.max.bytes",
            "message.max.bytes",
        ]
        .iter()
        .filter_map(|name| given(name));
        let readable: usize = readable.max().unwrap_or(0).max(RECEIVED_BYTES_MAX);
        readable
            .saturating_add(LETTER_HEADER_BYTES_MAX)
            .min(MESSAGE_BYTES_MAX)
    }
}

// === impl Debug ===

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let properties: BTreeMap<_, _> = self
            .properties
            .iter()
            .map(|(name, value)| (name, Self::shown(name, value)))
            .collect();
        f.debug_struct("Settings")
            .field("brokers", &self.brokers)
            .field("properties", &properties)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{properties::KNOWN, *};

    fn settings(properties: &[(&str, &str)]) -> Settings {
        let properties = properties
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Settings {
            brokers: "localhost:9092".into(),
            properties,
        }
    }

    #[test]
    fn every_property_that_cannot_be_used_is_reported_with_what_to_do() {
        for (property, value, expected) in [
            ("security.protocl", "SSL", "did you mean security.protocol?"),
            ("sasl_mechanism", "PLAIN", "did you mean sasl.mechanism"),
            (
                "compression.type",
                "brotli",
                "librdkafka refuses it: Invalid value \"brotli\"",
            ),
            ("linger.ms", "soon", "librdkafka refuses it"),
            ("linger.ms", "-1", "librdkafka refuses it"),
            ("acks", "1", "always all"),
            ("enable.idempotence", "false", "always true"),
            ("bootstrap.servers", "x:1", "kafka.brokers"),
            ("transactional.id", "x", "fence"),
            ("partitioner", "random", "murmur2"),
            ("message.max.bytes", "1", "librdkafka refuses it"),
            (
                "sasl.jaas.config",
                "x",
                "use sasl.username and sasl.password",
            ),
            ("quite.another.thing", "x", "CONFIGURATION.md"),
        ] {
            let faults = settings(&[(property, value)]).faults();
            assert_eq!(faults.len(), 1, "{property}");
            assert!(
                faults[0].reason.contains(expected),
                "{property}: {}",
                faults[0].reason
            );
        }
        let both = settings(&[("acks", "1"), ("client.id", "me"), ("linger.ms", "soon")]).faults();
        assert_eq!(
            both.iter()
                .map(|fault| fault.property.as_str())
                .collect::<Vec<_>>(),
            ["acks", "linger.ms"]
        );
        assert_eq!(
            settings(&[
                ("linger.ms", "5"),
                ("compression.type", "lz4"),
                ("client.id", "me")
            ])
            .faults(),
            []
        );
    }

    #[test]
    fn a_letter_may_be_as_large_as_any_record_that_can_be_read() {
        for (properties, readable) in [
            (&[][..], 100_000_000),
            (&[("message.max.bytes", "20000000")], 100_000_000),
            (&[("receive.message.max.bytes", "1000000")], 100_000_000),
            (&[("receive.message.max.bytes", "300000000")], 300_000_000),
            (&[("fetch.max.bytes", "400000000")], 400_000_000),
            (&[("message.max.bytes", "500000000")], 500_000_000),
        ] {
            assert_eq!(
                settings(properties).letter_bytes_max(),
                readable + LETTER_HEADER_BYTES_MAX,
                "{properties:?}"
            );
        }
        assert_eq!(
            settings(&[("message.max.bytes", "1000000000")]).letter_bytes_max(),
            MESSAGE_BYTES_MAX
        );
        let largest = MESSAGE_BYTES_MAX.to_string();
        assert_eq!(settings(&[("message.max.bytes", &largest)]).faults(), []);
    }

    #[test]
    fn a_known_property_is_one_librdkafka_or_tidings_knows() {
        for known in KNOWN {
            let text = refused_by_librdkafka(known, "\u{1}").unwrap_or_default();
            assert!(!text.contains("no such property"), "{known}");
        }
    }

    #[test]
    fn secrets_are_known_by_name_and_never_shown() {
        for secret in [
            "sasl.password",
            "SASL_PASSWORD",
            "ssl.key.password",
            "ssl.key.pem",
            "ssl.keystore.password",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.config",
            "sasl.oauthbearer.assertion.private.key.passphrase",
            "sasl.oauthbearer.assertion.private.key.pem",
            "sasl.oauthbearer.client.credentials.client.secret",
            "sasl.jaas.config",
            "sasl.pasword.typo.password",
            "sasl.pasword",
            "sasl.passwd",
            "sasl.pass",
            "ssl.key.passw",
            "Sasl.Username",
            "quite.another.thing",
        ] {
            assert!(Settings::is_secret(secret), "{secret}");
        }
        for plain in [
            "sasl.username",
            "ssl.key.location",
            "sasl.oauthbearer.token.endpoint.url",
            "client.id",
            "ssl.ca.pem",
        ] {
            assert!(!Settings::is_secret(plain), "{plain}");
        }
        let settings = settings(&[
            ("sasl.passwordd", "hunter2"),
            ("sasl.password", "hunter2"),
            ("sasl.pasword", "hunter2"),
            ("sasl.jaas.config", "x password=hunter2"),
            (
                "sasl.oauthbearer.token.endpoint.url",
                "https://ann:hunter2@login",
            ),
        ]);
        assert!(!format!("{settings:?} {:?}", settings.faults()).contains("hunter2"));
    }

    #[test]
    fn what_librdkafka_quotes_of_a_secret_is_hidden() {
        let settings = settings(&[
            ("sasl.oauthbearer.config", "principal=ann hunter2=x"),
            ("sasl.password", "ab"),
        ]);
        for (text, expected) in [
            (
                "unrecognized config beginning at: hunter2=x",
                "unrecognized config beginning at: ***=x",
            ),
            (
                "value \"principal=ann hunter2=x\" is wrong",
                "value \"***\" is wrong",
            ),
            ("password ab is wrong", "password *** is wrong"),
            ("nothing of it", "nothing of it"),
        ] {
            assert_eq!(settings.without_secrets(text), expected);
        }
    }

    #[test]
    fn what_is_wrong_with_the_properties_together_is_told_too() {
        assert_eq!(settings(&[("client.id", "me")]).combination_fault(), None);
        let missing_file = settings(&[
            ("security.protocol", "SSL"),
            ("ssl.ca.location", "/no/such/file.pem"),
        ]);
        let text = missing_file
            .combination_fault()
            .expect("a missing certificate is a fault");
        assert!(text.contains("ssl.ca.location"), "{text}");
    }

    #[test]
    fn brokers_are_host_and_port() {
        let fault = |brokers: &str| {
            Settings {
                brokers: brokers.into(),
                ..Settings::default()
            }
            .brokers_fault()
        };
        for good in [
            "localhost",
            "a:9092",
            "a:9092, b:9093",
            "[::1]:9092",
            "::1",
            "SSL://a:9092",
        ] {
            assert_eq!(fault(good), None, "{good}");
        }
        for bad in [
            "",
            "a:9092,",
            "a:port",
            "a:0",
            "a:99999",
            ":9092",
            "a/b:1",
            "http://a/b",
        ] {
            assert!(fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn a_client_gets_the_brokers_the_properties_and_a_name() {
        let config = settings(&[("linger.ms", "7")]).client_config();
        assert_eq!(config.get("bootstrap.servers"), Some("localhost:9092"));
        assert_eq!(config.get("linger.ms"), Some("7"));
        assert_eq!(config.get("client.id"), Some("tidings"));
        assert_eq!(
            settings(&[("client.id", "mine")])
                .client_config()
                .get("client.id"),
            Some("mine")
        );
        let over = settings(&[("linger.ms", "7"), ("sasl.password", "s")])
            .client_config_over(&[("linger.ms", "1"), ("batch.size", "9")]);
        assert_eq!(
            [
                over.get("linger.ms"),
                over.get("batch.size"),
                over.get("sasl.password")
            ],
            [Some("7"), Some("9"), Some("s")]
        );
    }
}
