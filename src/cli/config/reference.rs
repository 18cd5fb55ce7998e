//! The reference of the configuration, written from the table of keys. A test compares `docs/configuration.md` with it.

use super::key::{KEYS, Key, Kind};

/// The part of `docs/configuration.md` that lists every key.
pub(crate) fn keys_as_markdown() -> String {
    let mut text = String::from("| key | flag | environment | default | value |\n|---|---|---|---|---|\n");
    for key in KEYS {
        let shared = key.env_shared.map(|name| format!(", `{name}`")).unwrap_or_default();
        let default = key.default.map_or("none".to_owned(), |default| format!("`{default}`"));
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
