//! Checks of single librdkafka properties.

use rdkafka::{ClientConfig, error::KafkaError, types::RDKafkaConfRes};

use super::Settings;

/// Returns why a user cannot set a property: a guarantee, or a setting of Tidings, depends on it.
pub(super) fn reserved(property: &str) -> Option<&'static str> {
    Some(match property {
        "bootstrap.servers" | "metadata.broker.list" => {
            "set by Tidings; give the brokers as kafka.brokers"
        }
        "enable.idempotence" => {
            "always true: without it a retry repeats and reorders events; remove it"
        }
        "acks" | "request.required.acks" => {
            "always all: fewer acknowledgements lose events when a broker fails; remove it"
        }
        "transactional.id" => {
            "set by Tidings from the relay's name, to fence off another relay; remove it"
        }
        "transaction.timeout.ms" => "set by Tidings; remove it",
        "partitioner" | "msg_order_cmp" | "partitioner_cb" => {
            "set by Tidings: partitions are computed as the Java client does (murmur2), so that \
             consumers and other producers agree; remove it"
        }
        "max.in.flight" | "max.in.flight.requests.per.connection" => {
            "set by the idempotent producer: more than 5 requests in flight lose the order; remove \
             it"
        }
        "retries" | "message.send.max.retries" | "delivery.timeout.ms" | "message.timeout.ms" => {
            "set by Tidings: an event is retried until it is delivered, so that an outage loses \
             none; remove it"
        }
        "queue.buffering.max.messages" | "queue.buffering.max.kbytes" => {
            "set by Tidings; use limits.in_flight_events and limits.in_flight_bytes"
        }
        "queuing.strategy"
        | "delivery.report.only.error"
        | "enable.gapless.guarantee"
        | "produce.offset.report"
        | "log.queue" => {
            "set by Tidings: positions follow the broker's acknowledgements in order; remove it"
        }
        "allow.auto.create.topics" => "set by Tidings; use topics.create",
        "group.id"
        | "enable.auto.commit"
        | "enable.auto.offset.store"
        | "auto.commit.enable"
        | "isolation.level" => "a consumer's property that Tidings sets itself; remove it",
        _ => return None,
    })
}

/// Returns `true` if librdkafka has a property of this name. The value is invalid for every
/// property, but librdkafka reports an unknown name with a different error.
pub(super) fn is_known(property: &str) -> bool {
    let mut config = ClientConfig::new();
    config.set(property, "\u{1}");
    !matches!(
        config.create_native_config(),
        Err(KafkaError::ClientConfig(
            RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN,
            ..
        ))
    )
}

/// Checks one property by itself. Returns librdkafka's message if it refuses the property.
pub(super) fn refused_by_librdkafka(property: &str, value: &str) -> Option<String> {
    if let Some(instead) = JAVA
        .iter()
        .find_map(|(java, instead)| (*java == property).then_some(*instead))
    {
        return Some(format!(
            "librdkafka has no such property, it belongs to the Java client; {instead}"
        ));
    }
    let mut config = ClientConfig::new();
    config.set(property, value);
    match config.create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Some(unknown(property))
        }
        Err(KafkaError::ClientConfig(_, text, _, _))
            if text.contains("not supported in this build") =>
        {
            Some(format!(
                "this build of Tidings does not support it ({text}); build with the feature \
                 kafka-tls for TLS and SASL/SCRAM, or remove it"
            ))
        }
        Err(KafkaError::ClientConfig(_, text, _, _)) if Settings::is_secret(property) => {
            // librdkafka may quote the value.
            Some(if text.contains(value) {
                "librdkafka refuses the value".to_owned()
            } else {
                format!("librdkafka refuses it: {text}")
            })
        }
        Err(KafkaError::ClientConfig(_, text, _, _)) => {
            Some(format!("librdkafka refuses it: {text}"))
        }
        Err(error) => Some(format!("librdkafka cannot apply it: {error}")),
    }
}

fn unknown(property: &str) -> String {
    let wanted = property.to_ascii_lowercase().replace(['_', '-'], ".");
    let nearest = KNOWN
        .iter()
        .map(|known| (strsim::jaro_winkler(known, &wanted), *known))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, known)) if likeness > 0.9 => {
            format!("librdkafka has no such property; did you mean {known}?")
        }
        _ => "librdkafka has no such property; its CONFIGURATION.md lists all of them".to_owned(),
    }
}

/// Common properties of the Java client, and their replacements.
const JAVA: [(&str, &str); 7] = [
    ("sasl.jaas.config", "use sasl.username and sasl.password"),
    (
        "ssl.truststore.location",
        "use ssl.ca.location with a PEM file",
    ),
    (
        "ssl.truststore.password",
        "use ssl.ca.location with a PEM file, which needs no password",
    ),
    ("ssl.truststore.type", "use ssl.ca.location with a PEM file"),
    (
        "ssl.key.store.location",
        "use ssl.keystore.location (PKCS#12) or ssl.key.location (PEM)",
    ),
    ("buffer.memory", "use limits.in_flight_bytes"),
    ("max.request.size", "use kafka.max_message_bytes"),
];

/// Properties that users are likely to set, with which a misspelt name is compared.
pub(super) const KNOWN: [&str; 58] = [
    "acks",
    "batch.num.messages",
    "batch.size",
    "broker.address.family",
    "broker.address.ttl",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "compression.codec",
    "compression.level",
    "compression.type",
    "connections.max.idle.ms",
    "debug",
    "enable.idempotence",
    "enable.metrics.push",
    "enable.ssl.certificate.verification",
    "linger.ms",
    "log.connection.close",
    "message.max.bytes",
    "metadata.max.age.ms",
    "partitioner",
    "queue.buffering.max.ms",
    "receive.message.max.bytes",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "request.timeout.ms",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "sasl.kerberos.keytab",
    "sasl.kerberos.principal",
    "sasl.kerberos.service.name",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.nagle.disable",
    "socket.receive.buffer.bytes",
    "socket.send.buffer.bytes",
    "socket.timeout.ms",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.location",
    "topic.metadata.refresh.interval.ms",
];
