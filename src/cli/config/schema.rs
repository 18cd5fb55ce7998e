//! JSON Schema of the configuration file, derived from the table of keys.

use serde_json::{Map, Value, json};

use super::key::{KEYS, Key, Kind, PROPERTIES};

/// Pattern of a duration: the sum of numbers with units.
const DURATION: &str = "^ *([0-9]+ *(ms|s|m|h|d|w) *)+$";

/// Pattern of a size: a number, with or without a unit.
const BYTES: &str = "^[0-9]+ *(B|kB|KiB|MB|MiB|GB|GiB)?$";

/// Returns the schema.
pub(crate) fn schema() -> Value {
    let mut root = Map::new();
    for key in KEYS {
        insert(&mut root, key.path, property(key));
    }
    insert(&mut root, PROPERTIES, properties());
    let mut schema = table(root);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("Configuration of Tidings");
    schema["$defs"]["property"] = json!({ "anyOf": [
        { "type": ["string", "number", "boolean"] },
        { "type": "object", "additionalProperties": { "$ref": "#/$defs/property" } },
    ] });
    schema
}

/// Inserts the schema of `section.key` into the properties of the file.
fn insert(properties: &mut Map<String, Value>, path: &str, schema: Value) {
    match path.split_once('.') {
        None => drop(properties.insert(path.to_owned(), schema)),
        Some((section, key)) => {
            let section = properties
                .entry(section)
                .or_insert_with(|| table(Map::new()));
            section["properties"][key] = schema;
        }
    }
}

fn table(properties: Map<String, Value>) -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": properties })
}

fn property(key: &Key) -> Value {
    let mut schema = match key.kind {
        Kind::Text | Kind::Url => json!({ "type": "string" }),
        Kind::List => json!({ "anyOf": [
            { "type": "string" },
            { "type": "array", "items": { "type": "string" } },
        ] }),
        Kind::Choice(words) => json!({ "enum": words }),
        Kind::Boolean => json!({ "type": "boolean" }),
        Kind::Integer(least, most) => {
            json!({ "type": "integer", "minimum": least, "maximum": most })
        }
        Kind::Duration(..) => json!({ "type": "string", "pattern": DURATION }),
        Kind::Bytes(least, most) => json!({ "anyOf": [
            { "type": "string", "pattern": BYTES },
            { "type": "integer", "minimum": least, "maximum": most },
        ] }),
    };
    schema["description"] = json!(match key.kind {
        Kind::Duration(..) | Kind::Bytes(..) => format!("{}. {}", key.help, key.kind.expected()),
        _ => key.help.to_owned(),
    });
    if let Some(default) = key.default {
        schema["default"] = match key.kind {
            Kind::Boolean | Kind::Integer(..) => {
                serde_json::from_str(default).unwrap_or_else(|_| json!(default))
            }
            _ => json!(default),
        };
    }
    schema
}

/// Returns the schema of the properties of librdkafka, which checks them itself. TOML reads a name
/// with dots as nested tables.
fn properties() -> Value {
    json!({
        "type": "object",
        "description": "Properties of librdkafka; NAME_file names a file with the value of NAME",
        "additionalProperties": { "$ref": "#/$defs/property" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::config::template;
    use crate::cli::config::value::{self, Written};

    /// Checks a value against the keywords that the schema uses.
    fn is_valid(schema: &Value, value: &Value) -> bool {
        if let Some(choices) = schema.get("anyOf").and_then(Value::as_array) {
            return choices.iter().any(|choice| is_valid(choice, value));
        }
        if let Some(words) = schema.get("enum").and_then(Value::as_array) {
            return words.contains(value);
        }
        match schema["type"].as_str().expect("a type") {
            "string" => value.as_str().is_some_and(|text| {
                let pattern = schema.get("pattern").and_then(Value::as_str);
                pattern.is_none_or(|pattern| {
                    regex::Regex::new(pattern)
                        .expect("a pattern")
                        .is_match(text)
                })
            }),
            "boolean" => value.is_boolean(),
            "integer" => value.as_i64().is_some_and(|number| {
                schema["minimum"]
                    .as_i64()
                    .is_none_or(|least| number >= least)
                    && schema["maximum"].as_i64().is_none_or(|most| number <= most)
            }),
            "array" => value.is_array(),
            other => panic!("unexpected type {other}"),
        }
    }

    #[test]
    fn every_key_is_in_the_schema_with_a_type_that_accepts_its_values() {
        let schema = schema();
        for key in KEYS {
            let path = key.path.replace('.', "/properties/");
            let of_key = schema.pointer(&format!("/properties/{path}"));
            let of_key = of_key.unwrap_or_else(|| panic!("{} is missing", key.path));
            assert!(of_key["description"].is_string(), "{}", key.path);
            let text = key.default.unwrap_or_else(|| template::example(key));
            let value = match key.kind {
                Kind::Boolean | Kind::Integer(..) => serde_json::from_str(text).expect("a value"),
                _ => json!(text),
            };
            assert!(is_valid(of_key, &value), "{}: {value}", key.path);
            assert!(!is_valid(of_key, &json!(1.5)), "{}", key.path);
            match key.default {
                Some(_) => assert_eq!(of_key["default"], value, "{}", key.path),
                None => assert!(of_key.get("default").is_none(), "{}", key.path),
            }
        }
    }

    #[test]
    fn an_unknown_key_is_refused_and_a_property_of_librdkafka_is_not() {
        let schema = schema();
        for table in ["", "/properties/kafka", "/properties/limits"] {
            let closed = schema.pointer(&format!("{table}/additionalProperties"));
            assert_eq!(closed, Some(&json!(false)), "{table}");
        }
        let properties = &schema["properties"]["kafka"]["properties"]["properties"];
        let reference = properties["additionalProperties"]["$ref"].as_str();
        let target = reference
            .and_then(|path| path.strip_prefix('#'))
            .expect("a reference");
        assert!(schema.pointer(target).is_some(), "{reference:?}");
    }

    #[test]
    fn the_patterns_accept_what_the_parser_accepts() {
        let parsed = |kind, text: &str| value::read(kind, &Written::String(text.into())).is_ok();
        let matches = |pattern, text| regex::Regex::new(pattern).expect("valid").is_match(text);
        let duration = Kind::Duration(0, u64::MAX >> 1);
        for text in [
            "500ms", "10s", "2m", "1h", "7d", "1w", "1h30m", "1h 30m", "10", "s", "1x", "",
        ] {
            assert_eq!(matches(DURATION, text), parsed(duration, text), "{text}");
        }
        let bytes = Kind::Bytes(0, u64::MAX >> 1);
        for text in [
            "8MiB", "512 KiB", "1MB", "100", "1B", "MiB", "1.5MB", "1mb", "",
        ] {
            assert_eq!(matches(BYTES, text), parsed(bytes, text), "{text}");
        }
    }
}
