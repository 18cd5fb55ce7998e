//! Rewriting of the aggregate type to a topic with a regular expression, as in Debezium's
//! EventRouter (Kafka Connect's RegexRouter). Pure.

use regex::Regex;

/// `route.topic.regex` and `route.topic.replacement`: if the whole aggregate type matches, the
/// topic is the replacement. Otherwise, it is the aggregate type.
///
/// The replacement has Java's syntax: `$1` and `${name}` are groups, and a backslash escapes the
/// next character.
#[derive(Clone, Debug)]
pub struct TopicRewrite {
    regex: Regex,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Group(usize),
}

/// An invalid rewrite rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RewriteError {
    /// The expression does not parse, or uses an unsupported feature: look-around or
    /// back-references.
    #[error("`{0}` is not a regular expression: {1}")]
    Regex(String, String),
    /// The replacement names a group that the expression does not contain.
    #[error("the regular expression has no group `{0}`")]
    Group(String),
    /// The replacement has a `$` or a backslash at its end, or an unclosed brace.
    #[error("`{0}` is incomplete: write \\$ for a dollar sign")]
    Broken(String),
}

impl TopicRewrite {
    /// Parses an expression and its replacement.
    ///
    /// # Errors
    ///
    /// Returns an error if one of them is invalid.
    pub fn parse(regex: &str, replacement: &str) -> Result<Self, RewriteError> {
        let wrong = |error: regex::Error| {
            let text = error.to_string();
            let reason = text
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned();
            RewriteError::Regex(regex.to_owned(), reason)
        };
        let compiled = Regex::new(&format!("^(?:{regex})$")).map_err(wrong)?;
        let parts = parts(&compiled, replacement)?;
        Ok(Self {
            regex: compiled,
            parts,
        })
    }

    /// Returns the topic of an aggregate type.
    pub(crate) fn apply(&self, aggregate_type: &str) -> String {
        let Some(found) = self.regex.captures(aggregate_type) else {
            return aggregate_type.to_owned();
        };
        let text = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Group(group) => found
                .get(*group)
                .map(|group| group.as_str().to_owned())
                .unwrap_or_default(),
        };
        self.parts.iter().map(text).collect()
    }
}

/// Parses a replacement like Java's `Matcher.appendReplacement`: the number after `$` extends over
/// as many digits as still name a group.
fn parts(regex: &Regex, replacement: &str) -> Result<Vec<Part>, RewriteError> {
    let broken = || RewriteError::Broken(replacement.to_owned());
    let (mut parts, mut text, mut rest) = (Vec::new(), String::new(), replacement);
    while let Some(first) = rest.chars().next() {
        rest = &rest[first.len_utf8()..];
        match first {
            '\\' => {
                let next = rest.chars().next().ok_or_else(broken)?;
                text.push(next);
                rest = &rest[next.len_utf8()..];
            }
            '$' => {
                let (group, after) = match rest.strip_prefix('{') {
                    Some(inner) => {
                        let (name, after) = inner.split_once('}').ok_or_else(broken)?;
                        let group = regex.capture_names().position(|known| known == Some(name));
                        (
                            group.ok_or_else(|| RewriteError::Group(name.to_owned()))?,
                            after,
                        )
                    }
                    None => numbered(regex, rest).ok_or_else(|| match rest.chars().next() {
                        Some(digit) if digit.is_ascii_digit() => {
                            RewriteError::Group(digit.to_string())
                        }
                        _ => broken(),
                    })?,
                };
                parts.push(Part::Text(std::mem::take(&mut text)));
                parts.push(Part::Group(group));
                rest = after;
            }
            other => text.push(other),
        }
    }
    parts.push(Part::Text(text));
    parts.retain(|part| *part != Part::Text(String::new()));
    Ok(parts)
}

fn numbered<'a>(regex: &Regex, text: &'a str) -> Option<(usize, &'a str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (1..=digits).rev().find_map(|len| {
        let group = text[..len]
            .parse()
            .ok()
            .filter(|group| *group < regex.captures_len())?;
        Some((group, &text[len..]))
    })
}

// === impl PartialEq, Eq ===

impl PartialEq for TopicRewrite {
    fn eq(&self, other: &Self) -> bool {
        self.regex.as_str() == other.regex.as_str() && self.parts == other.parts
    }
}

impl Eq for TopicRewrite {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic(regex: &str, replacement: &str, aggregate_type: &str) -> String {
        TopicRewrite::parse(regex, replacement)
            .expect("a rewriting")
            .apply(aggregate_type)
    }

    #[test]
    fn topics_are_rewritten_as_connects_regex_router_does() {
        assert_eq!(
            topic(
                "(?<routedByValue>.*)",
                "outbox.event.${routedByValue}",
                "order"
            ),
            "outbox.event.order"
        );
        assert_eq!(topic("(.*)\\.(.*)", "$2-$1", "a.b"), "b-a");
        assert_eq!(topic("(.*)", "$10", "a"), "a0");
        assert_eq!(topic("(.*)", "\\$1.$1", "a"), "$1.a");
        // An aggregate type that does not match as a whole stays as it is.
        assert_eq!(topic("ord", "x", "order"), "order");
        assert_eq!(topic("a|order", "x", "order"), "x");
    }

    #[test]
    fn a_rewriting_that_is_none_says_why() {
        assert!(matches!(
            TopicRewrite::parse("(", "x"),
            Err(RewriteError::Regex(..))
        ));
        assert!(matches!(
            TopicRewrite::parse("(?=x)", "x"),
            Err(RewriteError::Regex(..))
        ));
        assert_eq!(
            TopicRewrite::parse("x", "${name}"),
            Err(RewriteError::Group("name".into()))
        );
        assert_eq!(
            TopicRewrite::parse("x", "$1"),
            Err(RewriteError::Group("1".into()))
        );
        assert_eq!(
            TopicRewrite::parse("x", "a$"),
            Err(RewriteError::Broken("a$".into()))
        );
    }

    proptest! {
        #[test]
        fn the_default_rewriting_puts_a_prefix_before_any_aggregate_type(
            aggregate_type in "[a-zA-Z0-9._-]{1,40}",
        ) {
            let expected = format!("outbox.event.{aggregate_type}");
            prop_assert_eq!(
                topic(
                    "(?<routedByValue>.*)",
                    "outbox.event.${routedByValue}",
                    &aggregate_type
                ),
                expected
            );
        }

        #[test]
        fn no_replacement_panics(replacement in ".{0,12}", aggregate_type in ".{0,12}") {
            if let Ok(rewrite) = TopicRewrite::parse("(?<a>.)?(.*)", &replacement) {
                rewrite.apply(&aggregate_type);
            }
        }
    }
}
