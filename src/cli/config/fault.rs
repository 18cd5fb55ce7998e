//! Errors of the configuration, and the sources of its values.

use std::fmt;
use std::path::PathBuf;

/// Source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The default.
    Default,
    /// The configuration file, and the line.
    File(PathBuf, usize),
    /// An environment variable.
    Environment(String),
    /// A flag, without its dashes.
    Flag(&'static str),
}

/// An error in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The key. Empty if the error concerns the whole file.
    pub(crate) key: String,
    /// The value as given, or `***` if it may hold a secret. `None` if there is no value.
    pub(crate) value: Option<String>,
    /// Source of the value. `None` if it was not given.
    pub(crate) place: Option<Place>,
    /// Description of the problem.
    pub(crate) problem: String,
    /// Remedy for the operator.
    pub(crate) remedy: String,
}

/// All errors of a configuration, as shown to the operator.
#[derive(Debug)]
pub(crate) struct Faults(pub Vec<Fault>);

// === impl Display ===

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Default => f.write_str("default"),
            Place::File(path, 0) => write!(f, "{}", path.display()),
            Place::File(path, line) => write!(f, "{}:{line}", path.display()),
            Place::Environment(name) => write!(f, "environment {name}"),
            Place::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.value, self.key.is_empty()) {
            (Some(value), false) => write!(f, "{} = {value}", self.key)?,
            (None, false) => f.write_str(&self.key)?,
            (_, true) => f.write_str("configuration")?,
        }
        if let Some(place) = &self.place {
            write!(f, "   ({place})")?;
        }
        write!(f, "\n    {}\n    -> {}", self.problem, self.remedy)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => writeln!(f, "the configuration has an error; nothing was started")?,
            count => writeln!(
                f,
                "the configuration has {count} errors; nothing was started"
            )?,
        }
        for fault in &self.0 {
            write!(f, "\n  {}", fault.to_string().replace('\n', "\n  "))?;
        }
        Ok(())
    }
}
