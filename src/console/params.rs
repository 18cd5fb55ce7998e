//! Parameters of a query or a form.

use url::form_urlencoded::{self, Serializer};

/// Maximum number of parameters. The largest form of the console has ten.
const PARAMETERS_MAX: usize = 32;

/// Parameters in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Parses `a=b&c=d`. Further parameters than the maximum are ignored.
    pub(super) fn parse(text: &str) -> Self {
        let pairs = form_urlencoded::parse(text.as_bytes()).take(PARAMETERS_MAX);
        Self(
            pairs
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
                .collect(),
        )
    }

    /// Returns a parameter that is not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(one, value)| one == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// Returns a parameter that can be parsed.
    pub(super) fn parsed<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.get(name)?.parse().ok()
    }

    /// Returns the parameters except `names`.
    pub(super) fn without(&self, names: &[&str]) -> Vec<(&str, &str)> {
        self.0
            .iter()
            .filter(|(name, _)| !names.contains(&name.as_str()))
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect()
    }
}

/// Returns a path with its query.
pub(super) fn link(path: &str, parameters: &[(&str, &str)]) -> String {
    if parameters.is_empty() {
        return path.to_owned();
    }
    let start = format!("{path}?");
    let length = start.len();
    let mut query = Serializer::for_suffix(start, length);
    query.extend_pairs(parameters);
    query.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_carries_any_text_to_the_parameters() {
        let hostile = "a&b=c \"<x>'\u{202e}\n%";
        let link = link("/console/parked", &[("db", "0"), ("reason", hostile)]);
        assert!(!link.contains(['<', '"', '\'', ' ', '\n']), "{link}");
        let (_, query) = link.split_once('?').expect("a query");
        assert!(query.starts_with("db=0&"), "{query}");
        let params = Params::parse(query);
        assert_eq!(params.get("reason"), Some(hostile));
        assert_eq!(params.parsed::<usize>("db"), Some(0));
        assert_eq!(params.without(&["db"]), [("reason", hostile)]);
    }

    #[test]
    fn the_number_of_parameters_is_bounded_and_an_empty_one_is_none() {
        assert_eq!(Params::parse(&"a=1&".repeat(1_000)).0.len(), PARAMETERS_MAX);
        assert_eq!(Params::parse("a=&b").get("a"), None);
    }
}
