//! Configuration file in which each setting is a comment, for `tidings init`.

use super::key::{DATABASE_URL, KEYS, Key, Kind, PROPERTIES};
use super::value::quoted;

/// Section whose settings are refused without its first one, so none is shown as a default.
const DEPENDENT: &str = "outbox";

/// Width of the comments.
const WIDTH: usize = 98;

const HEADER: &str = "\
# Configuration of Tidings. Run `tidings relay --config FILE`, or set TIDINGS_CONFIG.
#
# A line that starts with # and a setting shows a default: remove the # to change it. A setting
# without a default is shown as an example, after # and a space. So are those of [outbox], which
# apply only together with its table. Environment variables override this file, and flags override
# both. `tidings check` prints the effective settings.
";

/// Returns the text of the file.
pub(crate) fn text() -> String {
    let mut text = HEADER.to_owned();
    // A key after the first table would belong to it.
    let (tables, plain): (Vec<&Key>, Vec<&Key>) =
        KEYS.iter().partition(|key| key.path.contains('.'));
    for key in plain {
        setting(&mut text, key, key.path);
    }
    let mut sections: Vec<&str> = Vec::new();
    for key in &tables {
        let section = section(key).0;
        if !sections.contains(&section) {
            sections.push(section);
        }
    }
    for name in sections {
        text.push_str(&format!("\n[{name}]\n"));
        for key in tables.iter().filter(|key| section(key).0 == name) {
            setting(&mut text, key, section(key).1);
        }
    }
    text.push_str(&format!("\n[{PROPERTIES}]\n"));
    comment(
        &mut text,
        "Properties of librdkafka. A name that ends in _file names a file with the value.",
    );
    text.push_str("# security.protocol = \"sasl_ssl\"\n");
    text.push_str("# sasl.mechanism = \"SCRAM-SHA-512\"\n");
    text.push_str("# sasl.username = \"tidings\"\n");
    text.push_str("# sasl.password_file = \"/run/secrets/kafka-password\"\n");
    text
}

fn section(key: &Key) -> (&'static str, &'static str) {
    key.path.split_once('.').unwrap_or(("", key.path))
}

fn setting(text: &mut String, key: &Key, name: &str) {
    text.push('\n');
    comment(text, &format!("{}.", key.help));
    match key.kind {
        Kind::Text | Kind::Url | Kind::Boolean => {}
        kind => {
            let expected = kind.expected();
            let (first, rest) = expected.split_at(1);
            comment(text, &format!("{}{rest}.", first.to_ascii_uppercase()));
        }
    }
    let value = written(key, key.default.unwrap_or_else(|| example(key)));
    let mark = if is_default(key) { "#" } else { "# " };
    text.push_str(&format!("{mark}{name} = {value}\n"));
}

/// Returns `true` if the setting is shown as a default.
fn is_default(key: &Key) -> bool {
    key.default.is_some() && section(key).0 != DEPENDENT
}

/// Appends a comment in lines of at most [`WIDTH`] characters.
fn comment(text: &mut String, words: &str) {
    let mut line = String::from("#");
    for word in words.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}

/// Returns a value in the notation of the file.
fn written(key: &Key, value: &str) -> String {
    match key.kind {
        Kind::Boolean | Kind::Integer(..) => value.to_owned(),
        _ => quoted(value),
    }
}

/// Returns an example for a key without a default.
pub(super) fn example(key: &Key) -> &'static str {
    match (key.path, key.kind) {
        ("outbox.table", _) => "public.outboxevent",
        ("outbox.columns", _) => "aggregateid=order_id",
        ("outbox.additional", _) => "type:header:eventType",
        ("outbox.taken_offset", _) => "{\"lsn\":1}",
        ("routing.regex", _) => "(?<routedByValue>.*)",
        ("routing.replacement", _) => "outbox.event.${routedByValue}",
        ("routing.event_source", _) => "/orders",
        (path, Kind::Url) if path == DATABASE_URL.path => {
            "postgres://user:password@host:5432/database"
        }
        (_, Kind::Url) => "postgres://user:password@host:5432/other",
        (_, Kind::List) => "host:9092",
        (_, Kind::Text) => "name",
        (_, Kind::Choice(words)) => words.first().copied().unwrap_or_default(),
        (_, Kind::Boolean) => "true",
        (_, Kind::Integer(..)) => "3",
        (_, Kind::Duration(..)) => "1h",
        (_, Kind::Bytes(..)) => "10GiB",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cli::config::{Layer, Need, Needs, resolve, value};

    const NEEDS: Needs = Needs {
        database: Need::Unused,
        brokers: Need::Optional,
    };

    /// Removes the # before the settings. With `examples`, also before those without a default.
    fn uncommented(examples: bool) -> String {
        let is_setting = |line: &str| {
            let name = line.split(" = ").next().unwrap_or_default();
            line.contains(" = ")
                && name
                    .chars()
                    .all(|letter| letter.is_ascii_lowercase() || "._".contains(letter))
        };
        let line = |line: &str| {
            let bare = line.strip_prefix('#').unwrap_or(line);
            let example = bare.strip_prefix(' ').filter(|_| examples);
            match example.unwrap_or(bare) {
                bare if is_setting(bare) => format!("{bare}\n"),
                _ => format!("{line}\n"),
            }
        };
        text().lines().map(line).collect()
    }

    #[test]
    fn the_file_as_it_is_sets_nothing() {
        let layer = Layer::of_file(Path::new("t.toml"), &text());
        assert!(
            layer.faults.is_empty() && layer.values.is_empty() && layer.properties.is_empty(),
            "{layer:?}"
        );
    }

    #[test]
    fn the_uncommented_file_equals_the_defaults() {
        let layer = Layer::of_file(Path::new("t.toml"), &uncommented(false));
        assert_eq!(layer.faults, []);
        for key in KEYS {
            let given = layer
                .values
                .iter()
                .find(|(given, ..)| given.path == key.path);
            let Some(default) = key.default.filter(|_| is_default(key)) else {
                assert!(given.is_none(), "{} is an example", key.path);
                continue;
            };
            let (_, written, _) = given.unwrap_or_else(|| panic!("{} is missing", key.path));
            let default = value::Written::Word(default.into());
            assert_eq!(
                value::read(key.kind, written),
                value::read(key.kind, &default),
                "{}",
                key.path
            );
        }
        let shown = |layers| {
            let config = resolve(layers, NEEDS).expect("a valid configuration");
            let values = config
                .entries
                .into_iter()
                .map(|entry| (entry.key, entry.value));
            values.collect::<Vec<_>>()
        };
        assert_eq!(shown(vec![layer]), shown(Vec::new()));
    }

    #[test]
    fn every_example_has_the_type_of_its_key() {
        let layer = Layer::of_file(Path::new("t.toml"), &uncommented(true));
        assert_eq!(layer.faults, []);
        for key in KEYS {
            let given = layer
                .values
                .iter()
                .find(|(given, ..)| given.path == key.path);
            let (_, written, _) = given.unwrap_or_else(|| panic!("{} is missing", key.path));
            let read = value::read(key.kind, written);
            assert!(read.is_ok(), "{}", key.path);
            if let Some(default) = key.default {
                let default = value::Written::Word(default.into());
                assert_eq!(read, value::read(key.kind, &default), "{}", key.path);
            }
        }
        let names: Vec<_> = layer
            .properties
            .iter()
            .map(|(name, ..)| name.as_str())
            .collect();
        assert!(names.contains(&"sasl.password_file"), "{names:?}");
    }
}
