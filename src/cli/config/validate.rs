//! Rules for the text values of individual keys. Each returns the problem and the remedy, or `None`
//! if the text is valid.

use crate::postgres::{SchemaName, SchemaNameError};
use crate::relay::{TopicTemplate, is_dead_letter_topic, is_relay_name};

/// The problem and the remedy of an invalid text.
pub(crate) type Invalid = Option<(String, String)>;

fn broken(problem: impl Into<String>, remedy: impl Into<String>) -> Invalid {
    Some((problem.into(), remedy.into()))
}

/// Checks the name of a relay.
pub(crate) fn relay_name(name: &str) -> Invalid {
    if is_relay_name(name) {
        None
    } else {
        broken(
            "is not a valid relay name",
            "use 1 to 40 lower case letters, digits and _",
        )
    }
}

/// Checks the name of a schema. As in the migrations, it must not need quotes.
pub(crate) fn schema(name: &str) -> Invalid {
    match name.parse::<SchemaName>() {
        Ok(_) => None,
        Err(SchemaNameError::Reserved(_)) => broken(
            "starts with pg_, which Postgres reserves",
            "choose another name",
        ),
        Err(SchemaNameError::Length(_)) => broken(
            "is longer than 63 bytes, the limit of Postgres",
            "choose a shorter name",
        ),
        Err(_) => broken(
            "is not a valid schema name",
            "use lower case letters, digits and _, not starting with a digit",
        ),
    }
}

/// Checks a topic template, as the relay parses it.
pub(crate) fn topic_template(template: &str) -> Invalid {
    let error = TopicTemplate::parse(template).err()?;
    broken(
        format!("is not a topic template: {error}"),
        "use letters, digits, '.', '_', '-' and the placeholders {aggregatetype} and {type}",
    )
}

/// Checks a dead letter topic, as the relay parses it.
pub(crate) fn dead_letter_topic(template: &str) -> Invalid {
    if is_dead_letter_topic(template) {
        None
    } else {
        broken(
            "is not a valid dead letter topic",
            "use letters, digits, '.', '_', '-' and the placeholder {topic}, which must not stand \
             alone, for instance {topic}.dead",
        )
    }
}

/// Checks `ce_source`, a non-empty URI reference (CloudEvents 1.0).
pub(crate) fn event_source(text: &str) -> Invalid {
    let fits = !text.is_empty()
        && text.bytes().all(|byte| {
            byte.is_ascii_graphic()
                && !matches!(
                    byte,
                    b'<' | b'>' | b'"' | b'{' | b'}' | b'\\' | b'^' | b'`' | b'|'
                )
        });
    if fits {
        None
    } else {
        broken(
            "is not a URI reference",
            "write for instance /orders or https://example.com/orders; \
             percent-encode other characters",
        )
    }
}

/// Checks `host:port`, or `off`.
pub(crate) fn listen(text: &str) -> Invalid {
    const REMEDY: &str = "write ADDRESS:PORT, for instance 127.0.0.1:9464, or off";
    match text.rsplit_once(':') {
        _ if text == "off" => None,
        Some((host, port))
            if !host.is_empty()
                && port.parse::<u16>().is_ok()
                && (!host.contains(':') || host.starts_with('[')) =>
        {
            None
        }
        Some(_) => broken("is not an address and a port", REMEDY),
        None => broken("has no port", REMEDY),
    }
}

/// Checks the directives of tracing-subscriber's `EnvFilter`. Unlike `EnvFilter`, it does not
/// accept an unknown bare word as a target.
pub(crate) fn log_level(text: &str) -> Invalid {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let level = |word: &str| LEVELS.contains(&word.to_ascii_lowercase().as_str());
    let fits = text
        .split(',')
        .map(str::trim)
        .all(|directive| match directive.rsplit_once('=') {
            Some((target, word)) => !target.is_empty() && level(word),
            None => level(directive),
        });
    let parses = tracing_subscriber::EnvFilter::try_new(text).is_ok();
    if fits && parses {
        None
    } else {
        broken(
            "is not a log level",
            format!(
                "use {}, or per target: info,librdkafka=debug",
                LEVELS.join(", ")
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: fn(&str) -> Invalid, good: &[&str], bad: &[&str]) {
        for text in good {
            assert_eq!(rule(text), None, "{text}");
        }
        for text in bad {
            assert!(rule(text).is_some(), "{text}");
        }
    }

    #[test]
    fn each_text_has_its_rule() {
        let long = "a".repeat(41);
        check(
            relay_name,
            &["a", "orders_2", &long[..40]],
            &["", "Orders", "a-b", &long, "ä"],
        );
        check(
            schema,
            &["tidings", "_x1"],
            &["", "1x", "A", "pg_x", "a b", &"a".repeat(64)],
        );
        check(
            topic_template,
            &[
                "{aggregatetype}",
                "outbox.event.{aggregatetype}",
                "a-{type}_b",
                "orders",
                "{aggregatetype}{type}",
            ],
            &["", "{aggregate}", "{", "a{type", "a}b", "a b", "{}", "é"],
        );
        check(
            dead_letter_topic,
            &["{topic}.dead", "dead", "dead-{topic}"],
            &["", "{topic}", "{type}.dead", "a b", "."],
        );
        check(
            event_source,
            &["/tidings", "https://a.example/b?c#d", "urn:x:y"],
            &["", "a b", "<x>", "é"],
        );
        check(
            listen,
            &["off", "127.0.0.1:9464", "[::1]:80", "localhost:0"],
            &["", "9464", ":9464", "a:b", "::1", "a:99999"],
        );
        check(
            log_level,
            &["info", "WARN", "off", "info,librdkafka=debug"],
            &["", "inf", "info,x", "x=loud", "info,=debug"],
        );
    }
}
