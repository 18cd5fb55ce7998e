//! Settings that name a file with a secret: the variable `DATABASE_URL_FILE` for `DATABASE_URL`,
//! and the property `sasl.password_file` for `sasl.password`.
//!
//! Docker and Kubernetes mount secrets as files. Other users of the machine and child processes
//! cannot read such a file, but can read the environment of a process.

use std::io::{self, Read};
use std::path::Path;

use super::fault::{Fault, Place};
use super::key::{KEYS, Kind, PROPERTIES, PROPERTIES_ENV};
use super::layer::Layer;
use crate::kafka;

/// Suffix of the variables.
const SUFFIX: &str = "_FILE";

/// Suffix of the properties in the file and in flags. No property of librdkafka has it.
const PROPERTY_SUFFIX: &str = "_file";

/// Maximum size of a secret: larger than a chain of certificates.
const BYTES_MAX: u64 = 1 << 20;

/// Reads the environment variables. `read` reads the files that they name.
pub(super) fn layer(
    variables: &[(String, String)],
    read: impl Fn(&Path) -> io::Result<String>,
) -> Layer {
    let mut plain = Vec::new();
    let mut from_file = Vec::new();
    let mut faults = Vec::new();
    for (name, value) in variables {
        let Some((base, key)) = secret(name).filter(|_| !value.is_empty()) else {
            plain.push((name.clone(), value.clone()));
            continue;
        };
        let is_twice = variables
            .iter()
            .any(|(other, value)| other == base && !value.is_empty());
        match content(Path::new(value), is_twice.then_some((base, name)), &read) {
            Ok(secret) => {
                from_file.push(base.to_owned());
                plain.push((base.to_owned(), secret));
            }
            Err((problem, remedy)) => faults.push(Fault {
                key,
                // The variable may contain the secret itself by mistake.
                value: None,
                place: Some(Place::Environment(name.clone())),
                problem,
                remedy,
            }),
        }
    }
    let mut layer = Layer::of_environment(&plain);
    let values = layer.values.iter_mut().map(|(_, _, place)| place);
    let properties = layer.properties.iter_mut().map(|(_, _, place)| place);
    for place in values.chain(properties) {
        if let Place::Environment(name) = place
            && from_file.contains(name)
        {
            name.push_str(SUFFIX);
        }
    }
    layer.faults.extend(faults);
    layer
}

/// Replaces each property of a layer that names a file by the content of the file.
pub(super) fn properties(mut layer: Layer, read: impl Fn(&Path) -> io::Result<String>) -> Layer {
    let given: Vec<String> = layer
        .properties
        .iter()
        .map(|(name, ..)| name.clone())
        .collect();
    let mut properties = Vec::new();
    for (name, value, place) in std::mem::take(&mut layer.properties) {
        let Some(base) = name.strip_suffix(PROPERTY_SUFFIX) else {
            properties.push((name, value, place));
            continue;
        };
        let is_twice = given.iter().any(|other| other == base);
        match content(Path::new(&value), is_twice.then_some((base, &name)), &read) {
            Ok(secret) => properties.push((base.to_owned(), secret, place)),
            Err((problem, remedy)) => layer.faults.push(Fault {
                key: format!("{PROPERTIES}.{name}"),
                // The value may be the secret itself by mistake.
                value: None,
                place: Some(place),
                problem,
                remedy,
            }),
        }
    }
    layer.properties = properties;
    layer
}

/// Reads a file that contains a secret.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(text)
}

/// Returns the variable whose value is in the file, and its key. Returns `None` for a variable that
/// names no such file.
fn secret(name: &str) -> Option<(&str, String)> {
    let base = name.strip_suffix(SUFFIX)?;
    if let Some(property) = base.strip_prefix(PROPERTIES_ENV) {
        let property = property.to_ascii_lowercase().replace('_', ".");
        // librdkafka has properties that end in `.file`, whose value is a path.
        let is_property = kafka::Settings::is_known(&format!("{property}.file"));
        return (!is_property).then(|| (base, format!("{PROPERTIES}.{property}")));
    }
    let keys = KEYS.iter().filter(|key| key.kind == Kind::Url);
    keys.into_iter()
        .find(|key| key.env() == base || key.env_shared == Some(base))
        .map(|key| (base, key.path.to_owned()))
}

/// Returns the secret without the line break at its end, or a problem and its remedy.
fn content(
    path: &Path,
    twice: Option<(&str, &str)>,
    read: impl Fn(&Path) -> io::Result<String>,
) -> Result<String, (String, String)> {
    if let Some((base, name)) = twice {
        let problem = format!("is set twice: {base} is set too");
        return Err((problem, format!("remove {base} or {name}")));
    }
    let text = read(path).map_err(|error| {
        let remedy = "name a file that this user may read and that contains only the secret";
        (
            format!("cannot be read from the file: {error}"),
            remedy.into(),
        )
    })?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err((
            "is empty in the file".into(),
            "write the secret to the file, or remove the setting".into(),
        )),
        secret => Ok(secret.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer_of(variables: &[(&str, &str)]) -> Layer {
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        layer(&variables, |path| match path.to_str() {
            Some("/run/url") => Ok("postgres://ann:hunter2@db/shop\n".into()),
            Some("/run/password") => Ok("hunter 3\r\n".into()),
            Some("/run/empty") => Ok("\n".into()),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        })
    }

    #[test]
    fn a_secret_is_read_from_the_file_that_its_variable_names() {
        for name in ["DATABASE_URL_FILE", "TIDINGS_DATABASE_URL_FILE"] {
            let layer = layer_of(&[(name, "/run/url")]);
            assert_eq!(layer.faults, [], "{name}");
            let [(key, value, place)] = layer.values.as_slice() else {
                panic!("one value: {layer:?}");
            };
            assert_eq!(key.path, "database.url");
            assert_eq!(value.to_string(), "\"postgres://ann:hunter2@db/shop\"");
            assert_eq!(place, &Place::Environment(name.into()));
        }
        let name = "TIDINGS_KAFKA_PROPERTIES_SASL_PASSWORD_FILE";
        let layer = layer_of(&[(name, "/run/password")]);
        let place = Place::Environment(name.into());
        assert_eq!(layer.faults, []);
        assert_eq!(
            layer.properties,
            [("sasl.password".into(), "hunter 3".into(), place)]
        );
    }

    #[test]
    fn a_property_whose_name_ends_in_file_keeps_its_path() {
        let name = "TIDINGS_KAFKA_PROPERTIES_SASL_OAUTHBEARER_ASSERTION_FILE";
        let layer = layer_of(&[(name, "/run/jwt")]);
        assert_eq!(layer.faults, []);
        assert_eq!(layer.properties[0].0, "sasl.oauthbearer.assertion.file");
        assert_eq!(layer.properties[0].1, "/run/jwt");
    }

    #[test]
    fn a_property_is_read_from_the_file_that_it_names_in_the_file_and_in_flags() {
        let read = |path: &Path| match path.to_str() {
            Some("/run/password") => Ok("hunter 3\n".into()),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        let of_file = |text: &str| Layer::of_file(Path::new("t.toml"), text);
        let of_flag = |text: &str| Layer::of_flags(&[], &[text.to_owned()]);
        for layer in [
            of_file("[kafka.properties]\nsasl.password_file = \"/run/password\""),
            of_file("[kafka.properties]\n\"sasl.password_file\" = \"/run/password\""),
            of_flag("sasl.password_file=/run/password"),
        ] {
            let layer = properties(layer, read);
            assert_eq!(layer.faults, []);
            let [(name, value, _)] = layer.properties.as_slice() else {
                panic!("one property: {layer:?}");
            };
            assert_eq!(
                (name.as_str(), value.as_str()),
                ("sasl.password", "hunter 3")
            );
        }
        let missing = of_file("[kafka.properties]\nsasl.password_file = \"hunter2\"");
        let twice = of_file(
            "[kafka.properties]\nsasl.password = \"hunter2\"\nsasl.password_file = \"/run/password\"",
        );
        for (layer, problem) in [(missing, "cannot be read"), (twice, "is set twice")] {
            let layer = properties(layer, read);
            let [fault] = layer.faults.as_slice() else {
                panic!("one fault: {layer:?}");
            };
            let text = fault.to_string();
            assert!(
                text.contains(problem)
                    && text.contains("sasl.password_file")
                    && !text.contains("hunter2"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_secret_that_is_set_twice_or_cannot_be_read_is_an_error_that_does_not_show_it() {
        let url = "postgres://ann:hunter2@db/shop";
        for (variables, problem) in [
            (vec![("DATABASE_URL_FILE", "/run/none")], "cannot be read"),
            (vec![("DATABASE_URL_FILE", url)], "cannot be read"),
            (vec![("DATABASE_URL_FILE", "/run/empty")], "is empty"),
            (
                vec![("DATABASE_URL_FILE", "/run/url"), ("DATABASE_URL", url)],
                "is set twice",
            ),
            // Not a secret.
            (vec![("TIDINGS_LOG_LEVEL_FILE", "/run/url")], ""),
        ] {
            let layer = layer_of(&variables);
            let [fault] = layer.faults.as_slice() else {
                panic!("one fault of {variables:?}: {:?}", layer.faults);
            };
            let text = fault.to_string();
            assert!(
                text.contains(problem) && !text.contains("hunter2"),
                "{text}"
            );
        }
        // An orchestrator cannot omit a variable.
        assert_eq!(layer_of(&[("DATABASE_URL_FILE", "")]).faults, []);
    }
}
