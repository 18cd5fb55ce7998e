//! Layers of the configuration: the file, the environment and the flags. They are independent of
//! each other.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Fault, Place};
use super::key::{CONFIG_ENV, KEYS, Key, PROPERTIES, PROPERTIES_ENV};
use super::value::Written;
use crate::kafka;

/// Contents of a layer.
#[derive(Debug, Default)]
pub(crate) struct Layer {
    /// Values of the keys.
    pub(crate) values: Vec<(&'static Key, Written, Place)>,
    /// Properties of librdkafka.
    pub(crate) properties: Vec<(String, String, Place)>,
    /// Errors in the layer.
    pub(crate) faults: Vec<Fault>,
}

impl Layer {
    /// Parses the text of a configuration file.
    pub(crate) fn of_file(path: &Path, text: &str) -> Self {
        let mut layer = Layer::default();
        let (table, errors) = DeTable::parse_recoverable(text);
        let place = |offset: usize| {
            Place::File(
                path.to_owned(),
                text[..offset.min(text.len())].matches('\n').count() + 1,
            )
        };
        for error in errors {
            // Uses only the message: the parser's rendering quotes the line, which may hold a
            // password.
            layer.faults.push(Fault {
                key: String::new(),
                value: None,
                place: Some(place(error.span().map_or(0, |span| span.start))),
                problem: format!("is not valid TOML: {}", error.message().replace('\n', ", ")),
                remedy: "correct it; docs/configuration.md has an example of every key".into(),
            });
        }
        layer.read_table("", table.get_ref(), &place);
        layer
    }

    fn read_table(&mut self, prefix: &str, table: &DeTable<'_>, place: &impl Fn(usize) -> Place) {
        for (name, value) in table {
            let path = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            let at = place(name.span().start);
            match (Key::find(&path), value.get_ref()) {
                (Some(key), value) => self.values.push((key, written(value), at)),
                (None, DeValue::Table(properties)) if path == PROPERTIES => {
                    self.read_properties("", properties, place)
                }
                (None, DeValue::Table(section)) if is_section(&path) => {
                    self.read_table(&path, section, place)
                }
                (None, _) => self.faults.push(unknown_key(&path, at)),
            }
        }
    }

    /// Reads librdkafka properties. TOML parses a dotted name as nested tables, so both
    /// `sasl.password = "x"` and `"sasl.password" = "x"` work.
    fn read_properties(
        &mut self,
        prefix: &str,
        table: &DeTable<'_>,
        place: &impl Fn(usize) -> Place,
    ) {
        for (name, value) in table {
            let property = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            let at = place(name.span().start);
            match value.get_ref() {
                DeValue::Table(inner) => self.read_properties(&property, inner, place),
                DeValue::String(text) => self.properties.push((property, text.to_string(), at)),
                DeValue::Boolean(value) => self.properties.push((property, value.to_string(), at)),
                DeValue::Integer(number) => {
                    self.properties.push((property, number.to_string(), at))
                }
                DeValue::Float(number) => self.properties.push((property, number.to_string(), at)),
                other => self.faults.push(Fault {
                    key: format!("{PROPERTIES}.{property}"),
                    value: None,
                    place: Some(at),
                    problem: format!("has type {}", other.type_str()),
                    remedy: "write a string, a number or a boolean".into(),
                }),
            }
        }
    }

    /// Reads the environment variables of Tidings.
    pub(crate) fn of_environment(variables: &[(String, String)]) -> Self {
        let mut layer = Layer::default();
        // An empty variable counts as unset, because compose files and CI systems cannot omit one.
        let given = |name: &str| {
            variables
                .iter()
                .find(|(given, value)| given == name && !value.is_empty())
        };
        for key in KEYS {
            let own = key.env();
            if let Some((name, value)) = given(&own).or_else(|| given(key.env_shared?)) {
                layer.values.push((
                    key,
                    Written::Word(value.clone()),
                    Place::Environment(name.clone()),
                ));
            }
        }
        for (name, value) in variables
            .iter()
            .filter(|(name, value)| name.starts_with("TIDINGS_") && !value.is_empty())
        {
            if let Some(property) = name.strip_prefix(PROPERTIES_ENV) {
                let property = property.to_ascii_lowercase().replace('_', ".");
                layer
                    .properties
                    .push((property, value.clone(), Place::Environment(name.clone())));
            } else if !is_known_variable(name) {
                layer.faults.push(unknown_variable(name));
            }
        }
        layer
    }

    /// Reads the flags.
    pub(crate) fn of_flags(flags: &[(&'static Key, String)], properties: &[String]) -> Self {
        let mut layer = Layer::default();
        for (key, value) in flags {
            layer
                .values
                .push((key, Written::Word(value.clone()), Place::Flag(key.flag)));
        }
        for property in properties {
            let place = Place::Flag(super::key::PROPERTY_FLAG);
            match property.split_once('=') {
                Some((name, value)) => {
                    layer
                        .properties
                        .push((name.trim().to_owned(), value.to_owned(), place))
                }
                None => layer.faults.push(Fault {
                    key: PROPERTIES.into(),
                    value: Some(if kafka::Settings::is_secret(property) {
                        "\"***\"".into()
                    } else {
                        format!("{property:?}")
                    }),
                    place: Some(place),
                    problem: "has no =".into(),
                    remedy: "write NAME=VALUE, for instance --kafka-property linger.ms=5".into(),
                }),
            }
        }
        layer
    }
}

fn written(value: &DeValue<'_>) -> Written {
    let text = |item: &Spanned<DeValue<'_>>| item.get_ref().as_str().map(str::to_owned);
    match value {
        DeValue::String(text) => Written::String(text.to_string()),
        DeValue::Boolean(value) => Written::Boolean(*value),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).map_or(
            Written::Other("integer that is too large"),
            Written::Integer,
        ),
        DeValue::Array(items) => items.iter().map(text).collect::<Option<Vec<_>>>().map_or(
            Written::Other("array with items that are not strings"),
            Written::Strings,
        ),
        DeValue::Float(_) => Written::Other("float"),
        DeValue::Datetime(_) => Written::Other("date"),
        DeValue::Table(_) => Written::Other("table"),
    }
}

fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| {
        key.path
            .split_once('.')
            .is_some_and(|(section, _)| section == path)
    })
}

fn unknown_key(path: &str, place: Place) -> Fault {
    let name = |path: &'static str| path.rsplit('.').next().unwrap_or(path);
    let last = path.rsplit('.').next().unwrap_or(path);
    // The right key in the wrong section is a more likely mistake than a misspelling.
    let misplaced = KEYS
        .iter()
        .find(|key| name(key.path) == last)
        .map(|key| key.path);
    let sections = KEYS
        .iter()
        .filter_map(|key| key.path.split_once('.').map(|(section, _)| section));
    let candidates = KEYS
        .iter()
        .map(|key| key.path)
        .chain(sections)
        .chain([PROPERTIES]);
    let remedy = match misplaced.or_else(|| nearest(path, candidates)) {
        _ if path
            .strip_prefix("kafka.")
            .is_some_and(|rest| rest.contains('.')) =>
        {
            "a librdkafka property goes under [kafka.properties]".to_owned()
        }
        Some(known) => format!("did you mean {known}?"),
        None => "remove it; docs/configuration.md lists every key".to_owned(),
    };
    Fault {
        key: path.into(),
        value: None,
        place: Some(place),
        problem: "is not a known key".into(),
        remedy,
    }
}

fn unknown_variable(name: &str) -> Fault {
    let variables: Vec<String> = KEYS
        .iter()
        .map(|key| key.env())
        .chain([CONFIG_ENV.to_owned()])
        .collect();
    let suffixes = variables
        .iter()
        .map(|variable| &variable["TIDINGS_".len()..]);
    let remedy = match nearest(&name["TIDINGS_".len()..], suffixes) {
        Some(known) => format!("did you mean TIDINGS_{known}?"),
        None => "unset it; docs/configuration.md lists every variable".to_owned(),
    };
    let place = Some(Place::Environment(name.into()));
    Fault {
        key: name.into(),
        value: None,
        place,
        problem: "is not a known variable".into(),
        remedy,
    }
}

fn is_known_variable(name: &str) -> bool {
    let known = name == CONFIG_ENV || KEYS.iter().any(|key| key.env() == name);
    // Variables that Kubernetes adds to every pod next to a service named `tidings`.
    let service_link = name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.split_once("_PORT_").is_some_and(|(_, rest)| {
            rest.starts_with(|character: char| character.is_ascii_digit())
        });
    // Variables of the development services and of the tests of Tidings.
    known
        || service_link
        || name == "TIDINGS_CACHE"
        || ["TIDINGS_TEST_", "TIDINGS_DEV_", "TIDINGS_POSTGRES_"]
            .iter()
            .any(|own| name.starts_with(own))
}

/// Returns the candidate that is most similar to `name`, if any is similar enough.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let likeness = |candidate: &str| strsim::jaro_winkler(candidate, &name.replace('-', "_"));
    candidates
        .map(|candidate| (likeness(candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.85)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
