//! Where a value comes from, and what is wrong with it.

use std::fmt;
use std::path::PathBuf;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nobody gave it.
    Default,
    /// The configuration file, and the line in it.
    File(PathBuf, usize),
    /// An environment variable.
    Environment(String),
    /// A flag, without the dashes.
    Flag(&'static str),
}

/// One thing wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Which key; empty when the file as a whole is meant.
    pub(crate) key: String,
    /// The value as given, or `***` where it may hold a secret; none where there is none.
    pub(crate) value: Option<String>,
    /// Where it was given; none if it was not.
    pub(crate) place: Option<Place>,
    /// What is wrong.
    pub(crate) problem: String,
    /// What to do.
    pub(crate) remedy: String,
}

/// Everything that is wrong, as the operator reads it.
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
            1 => writeln!(f, "the configuration has a fault; nothing was started")?,
            count => writeln!(
                f,
                "the configuration has {count} faults; nothing was started"
            )?,
        }
        for fault in &self.0 {
            write!(f, "\n  {}", fault.to_string().replace('\n', "\n  "))?;
        }
        Ok(())
    }
}
