//! Parsing of single values.

use super::key::Kind;

/// A value as written: text in the environment and in flags, typed in the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Written {
    /// Text from the environment or a flag, which may represent any type.
    Word(String),
    /// A TOML string.
    String(String),
    /// A TOML integer.
    Integer(i64),
    /// A TOML boolean.
    Boolean(bool),
    /// A TOML array of strings.
    Strings(Vec<String>),
    /// Any other TOML value, with the name of its type.
    Other(&'static str),
}

/// A parsed value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Meant {
    /// Text, a choice, or a list joined with commas.
    Text(String),
    /// A whole number, a number of bytes, or a duration in milliseconds.
    Number(u64),
    /// `true` or `false`.
    Boolean(bool),
}

/// Reason why a value does not fit its key. Each text continues the name of the key.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub(crate) enum ValueError {
    #[error("is not {}", .0.expected())]
    NotOfKind(Kind),
    #[error("is not a choice")]
    NotAChoice,
    /// A TOML type that no key has.
    #[error("is {} {}", if .0.starts_with('a') { "an" } else { "a" }, .0)]
    OtherType(&'static str),
    /// A type that this key does not have.
    #[error("is {0}")]
    Type(&'static str),
}

/// Parses `written` for a key of this kind.
///
/// # Errors
///
/// Returns [`ValueError`] if the value does not fit the kind.
pub(crate) fn read(kind: Kind, written: &Written) -> Result<Meant, ValueError> {
    let expected = || ValueError::NotOfKind(kind);
    match (kind, written) {
        (_, Written::Other(name)) => Err(ValueError::OtherType(name)),
        (Kind::Text | Kind::Url | Kind::List, Written::Word(text) | Written::String(text)) => {
            Ok(Meant::Text(text.clone()))
        }
        (Kind::List, Written::Strings(texts)) => Ok(Meant::Text(texts.join(","))),
        (Kind::Choice(words), Written::Word(text) | Written::String(text)) => {
            match words.contains(&text.as_str()) {
                true => Ok(Meant::Text(text.clone())),
                false => Err(ValueError::NotAChoice),
            }
        }
        (Kind::Boolean, Written::Boolean(value)) => Ok(Meant::Boolean(*value)),
        (Kind::Boolean, Written::Word(text)) => {
            text.parse().map(Meant::Boolean).map_err(|_| expected())
        }
        (Kind::Integer(least, most), Written::Integer(number)) => {
            within(*number as i128, least as i128, most as i128).ok_or_else(expected)
        }
        (Kind::Integer(least, most), Written::Word(text)) => text
            .parse()
            .ok()
            .and_then(|number: i64| within(number as i128, least as i128, most as i128))
            .ok_or_else(expected),
        (Kind::Duration(least, most), Written::Word(text) | Written::String(text)) => {
            let number = read_duration(text).ok_or_else(expected)?;
            within(number as i128, least as i128, most as i128).ok_or_else(expected)
        }
        (Kind::Bytes(least, most), Written::Integer(number)) => {
            within(*number as i128, least as i128, most as i128).ok_or_else(expected)
        }
        (Kind::Bytes(least, most), Written::Word(text) | Written::String(text)) => {
            let number = text
                .parse()
                .ok()
                .or_else(|| read_unit(text, &BYTE_UNITS))
                .ok_or_else(expected)?;
            within(number as i128, least as i128, most as i128).ok_or_else(expected)
        }
        (_, written) => Err(ValueError::Type(written.type_name())),
    }
}

impl Written {
    fn type_name(&self) -> &'static str {
        match self {
            Written::Word(_) | Written::String(_) => "a quoted string",
            Written::Integer(_) => "an unquoted number",
            Written::Boolean(_) => "a boolean",
            Written::Strings(_) => "an array",
            Written::Other(name) => name,
        }
    }
}

// === impl Display ===

impl std::fmt::Display for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Written::Word(text) | Written::String(text) => write!(f, "{text:?}"),
            Written::Integer(number) => write!(f, "{number}"),
            Written::Boolean(value) => write!(f, "{value}"),
            Written::Strings(texts) => write!(f, "{texts:?}"),
            Written::Other(name) => write!(f, "({name})"),
        }
    }
}

const DURATION_UNITS: [(&str, u64); 6] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
    ("w", 604_800_000),
];
const BYTE_UNITS: [(&str, u64); 7] = [
    ("B", 1),
    ("kB", 1_000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
];

/// Returns text as a basic string of TOML.
pub(crate) fn quoted(text: &str) -> String {
    let escaped: String = text
        .chars()
        .map(|character| match character {
            '"' | '\\' => format!("\\{character}"),
            _ if character.is_control() => format!("\\u{:04x}", u32::from(character)),
            _ => character.to_string(),
        })
        .collect();
    format!("\"{escaped}\"")
}

/// Parses the sum of one or more numbers with units, in milliseconds: `90s`, `7d`, `1h 30m`.
fn read_duration(text: &str) -> Option<u64> {
    let mut sum = 0_u64;
    let mut rest = text;
    loop {
        let unit = rest.find(|character: char| !character.is_ascii_digit() && character != ' ')?;
        let length = rest[unit..]
            .find(|character: char| !character.is_ascii_alphabetic())
            .unwrap_or(rest.len() - unit);
        let (part, after) = rest.split_at(unit + length);
        sum = sum.checked_add(read_unit(part, &DURATION_UNITS)?)?;
        rest = after.trim_start();
        if rest.is_empty() {
            return Some(sum);
        }
    }
}

fn read_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

fn within(number: i128, least: i128, most: i128) -> Option<Meant> {
    (least..=most)
        .contains(&number)
        .then_some(Meant::Number(number as u64))
}

/// Formats milliseconds as a whole number of the largest possible unit, up to days.
pub(crate) fn show_duration(milliseconds: u64) -> String {
    let up_to_days = &DURATION_UNITS[..DURATION_UNITS.len() - 1];
    show(milliseconds, up_to_days)
}

/// Formats bytes as a whole number of the largest possible unit.
pub(crate) fn show_bytes(bytes: u64) -> String {
    show(bytes, &BYTE_UNITS)
}

fn show(number: u64, units: &[(&str, u64)]) -> String {
    let whole = units
        .iter()
        .filter(|(_, factor)| number >= *factor && number.is_multiple_of(*factor))
        .max_by_key(|(_, factor)| *factor);
    match whole {
        Some((unit, factor)) => format!("{}{unit}", number / factor),
        None => format!("{number}{}", units[0].0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> Written {
        Written::Word(text.into())
    }

    #[test]
    fn durations_have_days_and_weeks_and_may_have_several_parts() {
        let duration = Kind::Duration(0, u64::MAX);
        let (hour, day) = (3_600_000, 86_400_000);
        for (text, milliseconds) in [
            ("7d", 7 * day),
            ("1w", 7 * day),
            ("2 w", 14 * day),
            ("1d12h", day + 12 * hour),
            ("1h 30m", hour * 3 / 2),
            ("0s", 0),
        ] {
            assert_eq!(
                read(duration, &word(text)),
                Ok(Meant::Number(milliseconds)),
                "{text}"
            );
        }
        for text in [
            "",
            " ",
            "d",
            "7",
            "7d1",
            "7days",
            "7D",
            "1d-1h",
            "1 2h",
            "1d,2h",
            "1h 30m x",
            "99999999999999w",
            "1d99999999999999w",
        ] {
            assert!(read(duration, &word(text)).is_err(), "{text:?}");
        }
        assert_eq!(show_duration(7 * day), "7d");
        assert_eq!(show_duration(25 * hour), "25h");
    }

    #[test]
    fn durations_and_sizes_are_numbers_with_a_unit() {
        let duration = Kind::Duration(0, 3_600_000);
        for (text, milliseconds) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("10 s", 10_000),
        ] {
            assert_eq!(
                read(duration, &word(text)),
                Ok(Meant::Number(milliseconds)),
                "{text}"
            );
        }
        for text in [
            "10",
            "",
            "s",
            "-1s",
            "1.5s",
            "10sec",
            "2h",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(read(duration, &word(text)).is_err(), "{text}");
        }
        let bytes = Kind::Bytes(1, 1 << 30);
        for (text, count) in [
            ("1", 1),
            ("8MiB", 8 << 20),
            ("1kB", 1000),
            ("1GiB", 1 << 30),
            ("3 MB", 3_000_000),
        ] {
            assert_eq!(read(bytes, &word(text)), Ok(Meant::Number(count)), "{text}");
        }
        for text in ["0", "8mb", "2GiB", "MiB"] {
            assert!(read(bytes, &word(text)).is_err(), "{text}");
        }
        assert_eq!(
            (
                show_duration(90_000).as_str(),
                show_duration(120_000).as_str()
            ),
            ("90s", "2m")
        );
        assert_eq!(
            (
                show_bytes(1 << 20).as_str(),
                show_bytes(1_000).as_str(),
                show_bytes(1).as_str()
            ),
            ("1MiB", "1kB", "1B")
        );
    }

    #[test]
    fn the_file_is_typed_and_the_environment_is_not() {
        let integer = Kind::Integer(1, 9);
        assert_eq!(read(integer, &word("6")), Ok(Meant::Number(6)));
        assert_eq!(read(integer, &Written::Integer(6)), Ok(Meant::Number(6)));
        assert!(
            read(integer, &Written::String("6".into()))
                .is_err_and(|error| error.to_string().contains("quoted"))
        );
        assert!(read(integer, &Written::Integer(10)).is_err());
        assert!(read(integer, &Written::Integer(-1)).is_err());
        assert_eq!(read(Kind::Boolean, &word("true")), Ok(Meant::Boolean(true)));
        assert!(read(Kind::Boolean, &word("yes")).is_err());
        assert!(read(Kind::Boolean, &Written::String("true".into())).is_err());
        assert!(read(Kind::Text, &Written::Integer(1)).is_err());
        assert!(read(Kind::Duration(0, 10), &Written::Integer(1)).is_err());
        assert_eq!(
            read(
                Kind::List,
                &Written::Strings(vec!["a:1".into(), "b:2".into()])
            ),
            Ok(Meant::Text("a:1,b:2".into()))
        );
        assert!(read(Kind::Choice(&["a"]), &word("b")).is_err());
        assert_eq!(
            read(Kind::Text, &Written::Other("table")),
            Err(ValueError::OtherType("table"))
        );
    }
}
