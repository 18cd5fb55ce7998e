//! Checks of parked events of the subscribers whose inbox is in this database.

use sqlx::{AssertSqlSafe, FromRow, PgPool, Row as _, postgres::PgRow};

use super::Findings;

/// Parked events of one subscriber and topic.
#[derive(Clone, Debug)]
struct Parked {
    consumer: String,
    topic: String,
    events: i64,
    aggregates: i64,
    /// An instance of the subscriber is running.
    runs: bool,
    /// A running instance reads the topic.
    is_read: bool,
}

impl FromRow<'_, PgRow> for Parked {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            consumer: row.try_get("consumer")?,
            topic: row.try_get("topic")?,
            events: row.try_get("events")?,
            aggregates: row.try_get("aggregates")?,
            runs: row.try_get("runs")?,
            is_read: row.try_get("is_read")?,
        })
    }
}

/// Adds findings about parked events. Adds none if the role may not read the tables.
pub(super) async fn look(pool: &PgPool, schema: &str, findings: &mut Findings) {
    let sql = include_str!("subscribers.sql").replace("{schema}", schema);
    if let Ok(parked) = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(pool).await {
        judge(&parked, findings);
    }
}

fn judge(parked: &[Parked], findings: &mut Findings) {
    for Parked {
        consumer,
        topic,
        events,
        aggregates,
        runs,
        is_read,
    } in parked
    {
        let waiting = format!(
            "{consumer}: {events} parked events of {aggregates} aggregates of topic {topic}"
        );
        match (runs, is_read) {
            (_, true) => findings.ok("subscribers", waiting),
            (true, false) => findings.warn(
                "subscribers",
                format!("{waiting} are not handled: no running instance subscribes to the topic"),
                format!(
                    "run a version of {consumer} that subscribes to {topic} \
                     until these events are handled"
                ),
            ),
            (false, _) => findings.warn(
                "subscribers",
                format!("{waiting} wait: no instance of the subscriber is running"),
                format!("start {consumer}"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn parked_events_that_no_instance_handles_are_a_warning() {
        let parked = |runs, is_read| Parked {
            consumer: "stock".into(),
            topic: "order".into(),
            events: 3,
            aggregates: 2,
            runs,
            is_read,
        };
        for (runs, is_read, state) in [
            (true, true, State::Ok),
            (true, false, State::Warn),
            (false, false, State::Warn),
        ] {
            let mut findings = Findings::of("postgres");
            judge(&[parked(runs, is_read)], &mut findings);
            let found = &findings.list[0];
            assert_eq!(
                (found.state, found.remedy.is_some()),
                (state, state == State::Warn)
            );
            assert!(
                found
                    .text
                    .contains("stock: 3 parked events of 2 aggregates of topic order"),
                "{}",
                found.text
            );
        }
    }
}
