//! Reference of the configuration, generated from the table of keys. A test compares it with
//! `docs/configuration.md`.

use super::key::{KEYS, Key, Kind};

/// Returns the table of all keys in `docs/configuration.md`.
fn keys_as_markdown() -> String {
    let mut text =
        String::from("| key | flag | environment | default | value |\n|---|---|---|---|---|\n");
    for key in KEYS {
        let shared = key
            .env_shared
            .map(|name| format!(", `{name}`"))
            .unwrap_or_default();
        let default = key
            .default
            .map_or("none".to_owned(), |default| format!("`{default}`"));
        text.push_str(&format!(
            "| `{}` | `--{}` | `{}`{shared} | {default} | {}. {} |\n",
            key.path,
            key.flag,
            key.env(),
            key.help,
            allowed(key)
        ));
    }
    text
}

fn allowed(key: &Key) -> String {
    match key.kind {
        Kind::Text | Kind::Url => "A string.".to_owned(),
        kind => {
            let expected = kind.expected();
            let (first, rest) = expected.split_at(1);
            format!("{}{rest}.", first.to_ascii_uppercase())
        }
    }
}

/// The lines around the table in the page.
const BEGIN: &str = "<!-- keys: written by `UPDATE_DOCS=1 cargo test --lib reference` -->\n";
const END: &str = "<!-- end of keys -->\n";

#[test]
fn the_reference_lists_every_key_as_the_code_has_it() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    let page = std::fs::read_to_string(path).expect("docs/configuration.md exists");
    let (before, rest) = page
        .split_once(BEGIN)
        .expect("the page has the line before the table");
    let (table, after) = rest
        .split_once(END)
        .expect("the page has the line after the table");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(
            path,
            format!("{before}{BEGIN}{}{END}{after}", keys_as_markdown()),
        )
        .expect("the page is writable");
    } else {
        assert_eq!(
            table,
            keys_as_markdown(),
            "run: UPDATE_DOCS=1 cargo test --lib reference"
        );
    }
}

#[test]
fn the_example_in_the_reference_is_a_sound_configuration_that_gives_every_key() {
    use super::{Layer, Need, Needs, resolve};

    let page = include_str!("../../../docs/configuration.md");
    let example = page
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("the page has an example");
    let layer = Layer::of_file(std::path::Path::new("tidings.toml"), example);
    for key in KEYS {
        assert!(
            layer
                .values
                .iter()
                .any(|(given, ..)| given.path == key.path),
            "the example lacks {}",
            key.path
        );
    }
    let resolved = resolve(
        vec![layer],
        Needs {
            database: Need::Required,
            brokers: Need::Required,
        },
    );
    resolved.unwrap_or_else(|faults| panic!("{}", super::Faults(faults)));
}

#[test]
fn the_reference_lists_the_exit_codes_as_help_does() {
    let page = include_str!("../../../docs/configuration.md");
    for line in crate::cli::exit::HELP.lines().skip(1) {
        let (code, meaning) = line.trim().split_once(' ').expect("a code and its meaning");
        assert!(
            page.contains(&format!("| {code} | {} |", meaning.trim())),
            "the page lacks: | {code} | {} |",
            meaning.trim()
        );
    }
}
