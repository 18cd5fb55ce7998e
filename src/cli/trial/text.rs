//! Texts of `tidings try` around the events.

use super::orders::Counts;
use crate::inspect::units::counted;

/// A run as commands of another terminal have to name it.
pub(super) struct Names<'n> {
    /// URL of the database. `None` if it is the configured one, which may contain a password.
    pub(super) url: Option<&'n str>,
    pub(super) schema: &'n str,
    pub(super) brokers: &'n str,
    /// Id of an event.
    pub(super) event: String,
}

/// Formats the commands that show a run, one per line.
pub(super) fn commands(names: &Names<'_>) -> String {
    let url = match names.url {
        Some(url) => format!("'{url}'"),
        None => "\"$DATABASE_URL\"".to_owned(),
    };
    let database = format!("--database-url {url} --schema {}", names.schema);
    let both = format!("{database} --brokers {}", names.brokers);
    format!(
        "\nfrom another terminal:\n  \
         tidings console {both}\n  \
         tidings status {database}\n  \
         tidings where {} {both}\n\n",
        names.event
    )
}

/// Formats the numbers of events.
pub(super) fn counts(counts: Counts) -> String {
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    format!(
        "\n{} committed, {} rolled back\n\n",
        counted(number(counts.committed), "event"),
        counted(number(counts.rolled_back), "transaction")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_name_the_run_and_no_password() {
        let names = |url| Names {
            url,
            schema: "tidings_try_1",
            brokers: "127.0.0.1:9092",
            event: "0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10".into(),
        };
        let own = commands(&names(Some("postgres://postgres@127.0.0.1:1/postgres")));
        assert!(
            own.contains(
                "  tidings console --database-url 'postgres://postgres@127.0.0.1:1/postgres' \
                 --schema tidings_try_1 --brokers 127.0.0.1:9092\n"
            ),
            "{own}"
        );
        let given = commands(&names(None));
        assert!(
            given.contains(
                "  tidings status --database-url \"$DATABASE_URL\" --schema tidings_try_1\n"
            ),
            "{given}"
        );
        assert_eq!(given.matches("tidings where 0199e6f0-").count(), 1);
    }

    #[test]
    fn the_counts_are_those_of_events_and_transactions() {
        let text = counts(Counts {
            committed: 1_200,
            rolled_back: 1,
        });
        let expected = "1,200 events committed, 1 transaction rolled back";
        assert!(text.trim_start().starts_with(expected), "{text}");
    }
}
