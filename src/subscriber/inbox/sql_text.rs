//! Events of the inbox as SQL text. The statements that begin a transaction are sent as simple
//! queries, which have no parameters.

use std::fmt::{self, Write as _};

use super::identity::Identity;

/// Text as an SQL literal that is valid with any value of `standard_conforming_strings`.
pub(crate) struct Literal<'a>(pub(crate) &'a str);

impl fmt::Display for Literal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.contains('\\') { " E'" } else { "'" })?;
        for part in self.0.split_inclusive(['\'', '\\']) {
            f.write_str(part)?;
            // Both characters are escaped by doubling them.
            if let Some(special) = part
                .chars()
                .next_back()
                .filter(|last| matches!(last, '\'' | '\\'))
            {
                f.write_char(special)?;
            }
        }
        f.write_char('\'')
    }
}

/// The columns of one event: source, id, topic and fingerprint.
pub(crate) struct Columns<'a>(pub(crate) &'a Identity);

impl fmt::Display for Columns<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity {
            source,
            id,
            topic,
            fingerprint,
        } = self.0;
        write!(
            f,
            "{}, {}, {}, '{fingerprint}'",
            Literal(source),
            Literal(id),
            Literal(topic)
        )
    }
}

/// The rows of an insert statement for a consumer.
pub(crate) struct Rows<'a>(pub(crate) &'a str, pub(crate) &'a [&'a Identity]);

impl fmt::Display for Rows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, identity) in self.1.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}({}, {})", Literal(self.0), Columns(identity))?;
        }
        Ok(())
    }
}

/// The columns of several events as arrays.
pub(crate) struct Arrays<'a>(pub(crate) &'a [&'a Identity]);

impl fmt::Display for Arrays<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        array(f, self.0.iter().map(|identity| Literal(&identity.source)))?;
        f.write_str(", ")?;
        array(f, self.0.iter().map(|identity| Literal(&identity.id)))?;
        f.write_str(", ")?;
        array(f, self.0.iter().map(|identity| Literal(&identity.topic)))?;
        f.write_str(", ")?;
        array(
            f,
            self.0
                .iter()
                .map(|identity| format!("'{}'", identity.fingerprint)),
        )?;
        f.write_str("::bigint[]")
    }
}

fn array(
    f: &mut fmt::Formatter<'_>,
    values: impl Iterator<Item = impl fmt::Display>,
) -> fmt::Result {
    for (at, value) in values.enumerate() {
        write!(f, "{}{value}", if at == 0 { "array[" } else { "," })?;
    }
    f.write_char(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_a_literal_that_cannot_end_early() {
        assert_eq!(Literal("a").to_string(), "'a'");
        assert_eq!(
            Literal("a'; drop table x; --").to_string(),
            "'a''; drop table x; --'"
        );
        assert_eq!(Literal(r"a\'").to_string(), r" E'a\\'''");
    }

    #[test]
    fn a_fingerprint_below_zero_is_a_literal_too() {
        let identity = Identity {
            source: "/s".into(),
            id: "1".into(),
            topic: "t".into(),
            fingerprint: i64::MIN,
        };
        assert_eq!(
            Rows("c", &[&identity]).to_string(),
            "('c', '/s', '1', 't', '-9223372036854775808')"
        );
        let arrays = "array['/s'], array['1'], array['t'], array['-9223372036854775808']::bigint[]";
        assert_eq!(Arrays(&[&identity]).to_string(), arrays);
    }
}
