//! Words of a command line, which the histories of relays and of subscribers share.

use std::{fmt, str::FromStr};

use super::faults::Fault;

/// Reason why a command line is refused, or the usage if it asks for help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unusable(String);

impl Unusable {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

/// Passes each option and its value to `set`.
///
/// # Errors
///
/// Returns a reason with the usage if a word is invalid, and the usage for `--help`.
pub(crate) fn read<'w>(
    words: impl IntoIterator<Item = &'w str>,
    usage: &str,
    mut set: impl FnMut(&str, &str) -> Result<(), Unusable>,
) -> Result<(), Unusable> {
    let mut words = words.into_iter();
    while let Some(option) = words.next() {
        if option == "--help" {
            return Err(Unusable::new(usage));
        }
        let value = words
            .next()
            .ok_or_else(|| Unusable(format!("{option} needs a value\n{usage}")))?;
        set(option, value)
            .map_err(|reason| Unusable(format!("{option} {value}: {reason}\n{usage}")))?;
    }
    Ok(())
}

/// Parses a number.
///
/// # Errors
///
/// Returns a reason if the text is not a number of this type.
pub(crate) fn number<N: FromStr>(text: &str) -> Result<N, Unusable> {
    text.parse()
        .map_err(|_| Unusable::new("not a valid number"))
}

/// Parses a number for which `fits` holds. `range` describes it.
///
/// # Errors
///
/// Returns `range` if the number does not fit.
pub(crate) fn number_in<N: FromStr>(
    text: &str,
    range: &str,
    fits: impl FnOnce(&N) -> bool,
) -> Result<N, Unusable> {
    Some(number(text)?)
        .filter(fits)
        .ok_or_else(|| Unusable::new(range))
}

/// Parses words of faults that are separated by commas.
///
/// # Errors
///
/// Returns the first unknown word.
pub(crate) fn faults<K: Fault + FromStr<Err = Unusable>>(text: &str) -> Result<Vec<K>, Unusable> {
    text.split(',').map(K::from_str).collect()
}

/// Returns the words of faults, separated by commas.
pub(crate) fn of_faults<K: Fault>(faults: &[K]) -> String {
    let words: Vec<String> = faults.iter().map(ToString::to_string).collect();
    words.join(",")
}
