//! Checks of sagas. A relay does not depend on them, but operators look for their problems here.

use sqlx::{AssertSqlSafe, FromRow, PgPool, Row as _, postgres::PgRow};

use super::Findings;
use crate::inspect::units::time;
use crate::saga::LIVE_SECONDS;

/// A saga that has been due for less time is not reported: a running service continues it within a
/// second.
const OVERDUE_SECONDS: f64 = 60.0;

/// Counts of the sagas of one name that have not ended successfully.
#[derive(Clone, Debug, Default)]
struct Standing {
    name: String,
    open: i64,
    failed: i64,
    overdue_seconds: f64,
    /// Number of sagas that the running code cannot continue; `obstacle` is the reason of one of
    /// them.
    blocked: i64,
    obstacle: Option<String>,
    /// Time since code that runs them was last seen. `None` if none has registered.
    unseen_seconds: Option<f64>,
}

/// Adds findings about sagas. Adds none if the role may not read the table.
pub(super) async fn look(pool: &PgPool, schema: &str, findings: &mut Findings) {
    let readable: Result<Option<bool>, _> =
        sqlx::query_scalar("select has_table_privilege(to_regclass($1), 'select')")
            .bind(format!(r#""{schema}".saga"#))
            .fetch_one(pool)
            .await;
    match readable {
        Ok(Some(true)) => {}
        Ok(None) => {
            return findings.warn(
                "sagas",
                format!("table {schema}.saga does not exist"),
                "run `tidings migrate` before a service runs a saga",
            );
        }
        _ => return,
    }
    let sql = include_str!("sagas.sql").replace("{schema}", schema);
    if let Ok(rows) = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(pool).await {
        judge(&rows, findings);
    }
}

fn judge(standings: &[Standing], findings: &mut Findings) {
    let before = findings.list.len();
    for Standing {
        name,
        open,
        failed,
        overdue_seconds,
        blocked,
        obstacle,
        unseen_seconds,
    } in standings
    {
        if *blocked > 0 {
            let text = format!(
                "{blocked} of {name} cannot be continued: {}",
                obstacle.as_deref().unwrap_or("-")
            );
            findings.warn(
                "sagas",
                text,
                format!("run `tidings sagas list --saga {name}` and deploy the code that it names"),
            );
        }
        if let Some(unseen) = unseen_seconds.filter(|unseen| *unseen > LIVE_SECONDS && *open > 0) {
            let remedy = "start the service that runs this saga; if the saga was renamed or \
                          removed, run its former definition next to the new one until none of \
                          its sagas is left";
            findings.warn(
                "sagas",
                format!(
                    "{open} of {name} are open, and no service has run them for {}",
                    time(unseen)
                ),
                remedy,
            );
            continue;
        }
        if *failed > 0 {
            let remedy = format!(
                "run `tidings sagas list --saga {name} --status failed`, \
                 then `tidings sagas retry` or `tidings sagas abort --force`"
            );
            findings.warn(
                "sagas",
                format!("{failed} of {name} have failed and wait for an operator"),
                remedy,
            );
        }
        if *overdue_seconds > OVERDUE_SECONDS {
            let text = format!(
                "{name}: a saga has been due for {}, and no service has continued it",
                time(*overdue_seconds)
            );
            findings.warn(
                "sagas",
                text,
                "start the newest version of the service that runs this saga; \
                 its log contains the reason",
            );
        }
    }
    if findings.list.len() == before {
        let open: i64 = standings.iter().map(|standing| standing.open).sum();
        findings.ok("sagas", format!("{open} open, none failed"));
    }
}

// === impl FromRow ===

impl FromRow<'_, PgRow> for Standing {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            name: row.try_get("name")?,
            open: row.try_get("open")?,
            failed: row.try_get("failed")?,
            overdue_seconds: row.try_get("overdue_seconds")?,
            blocked: row.try_get("blocked")?,
            obstacle: row.try_get("obstacle")?,
            unseen_seconds: row.try_get("unseen_seconds")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn judged(standings: &[(&str, i64, i64, f64)]) -> Vec<(State, String)> {
        let standing = |&(name, open, failed, overdue_seconds): &(&str, _, _, _)| Standing {
            name: name.to_owned(),
            open,
            failed,
            overdue_seconds,
            ..Standing::default()
        };
        judged_by(&standings.iter().map(standing).collect::<Vec<_>>())
    }

    fn judged_by(standings: &[Standing]) -> Vec<(State, String)> {
        let mut findings = Findings::of("postgres");
        judge(standings, &mut findings);
        assert!(
            findings
                .list
                .iter()
                .all(|finding| (finding.state == State::Ok) == finding.remedy.is_none())
        );
        findings
            .list
            .into_iter()
            .map(|finding| (finding.state, finding.text))
            .collect()
    }

    #[test]
    fn sagas_that_have_failed_and_those_that_nobody_runs_are_told_by_name() {
        assert_eq!(judged(&[]), [(State::Ok, "0 open, none failed".into())]);
        assert_eq!(
            judged(&[("a", 2, 0, 0.4), ("b", 3, 0, 59.0)]),
            [(State::Ok, "5 open, none failed".into())]
        );
        let told = judged(&[("a", 2, 0, 0.4), ("b", 3, 1, 0.0), ("c", 1, 0, 120.0)]);
        assert_eq!(told.len(), 2);
        assert!(told.iter().all(|(state, _)| *state == State::Warn));
        assert!(
            told[0].1.contains("1 of b have failed")
                && told[1].1.starts_with("c: a saga has been due for 2"),
            "{told:?}"
        );
    }

    #[test]
    fn sagas_that_the_code_cannot_continue_and_those_whose_code_is_gone_are_reported() {
        let blocked = Standing {
            name: "a".into(),
            open: 3,
            blocked: 2,
            obstacle: Some("it stands at `pay`".into()),
            ..Standing::default()
        };
        let found = judged_by(&[
            blocked.clone(),
            Standing {
                blocked: 0,
                unseen_seconds: Some(59.0),
                ..blocked.clone()
            },
        ]);
        assert_eq!(
            found,
            [(
                State::Warn,
                "2 of a cannot be continued: it stands at `pay`".into()
            )]
        );
        let gone = Standing {
            blocked: 0,
            unseen_seconds: Some(120.0),
            ..blocked
        };
        let found = judged_by(&[gone.clone(), Standing { open: 0, ..gone }]);
        assert_eq!(found.len(), 1);
        assert!(
            found[0]
                .1
                .starts_with("3 of a are open, and no service has run them for 2"),
            "{found:?}"
        );
    }
}
