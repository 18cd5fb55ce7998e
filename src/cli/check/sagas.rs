//! What the database says of sagas: not the relay's business, but a person's, who looks here.

use sqlx::{AssertSqlSafe, PgPool};

use super::Findings;
use crate::cli::table::time;

/// Due for so long is not looked at: a service that runs the saga does so within a second.
const OVERDUE_SECONDS: f64 = 60.0;

/// How the sagas of one name stand that have not ended well.
#[derive(Clone, Debug)]
struct Standing {
    name: String,
    open: i64,
    failed: i64,
    overdue_seconds: f64,
}

/// Adds what there is to say. A role that may not read the table is not asked.
pub(super) async fn look(pool: &PgPool, schema: &str, findings: &mut Findings) {
    let readable: Result<Option<bool>, _> = sqlx::query_scalar("select has_table_privilege(to_regclass($1), 'select')")
        .bind(format!(r#""{schema}".saga"#))
        .fetch_one(pool)
        .await;
    match readable {
        Ok(Some(true)) => {}
        Ok(None) => {
            return findings.warn(
                "sagas",
                format!("there is no table {schema}.saga"),
                "run `tidings migrate` before a service runs a saga",
            );
        }
        _ => return,
    }
    let sql = include_str!("sagas.sql").replace("{schema}", schema);
    if let Ok(rows) = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(pool).await {
        let standing = |(name, open, failed, overdue_seconds)| Standing { name, open, failed, overdue_seconds };
        judge(&rows.into_iter().map(standing).collect::<Vec<_>>(), findings);
    }
}

fn judge(standings: &[Standing], findings: &mut Findings) {
    let before = findings.list.len();
    for Standing { name, failed, overdue_seconds, .. } in standings {
        if *failed > 0 {
            let remedy = format!("tidings sagas list --saga {name} --status failed; then `tidings sagas retry` or `abort --force`");
            findings.warn("sagas", format!("{failed} of {name} have failed, and wait for a person"), remedy);
        }
        if *overdue_seconds > OVERDUE_SECONDS {
            let text = format!("{name}: nobody has looked for {} at one that is due", time(*overdue_seconds));
            findings.warn("sagas", text, "start the service that runs this saga, in its newest version; its log says what keeps it");
        }
    }
    if findings.list.len() == before {
        let open: i64 = standings.iter().map(|standing| standing.open).sum();
        findings.ok("sagas", format!("{open} under way, none has failed"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn judged(standings: &[(&str, i64, i64, f64)]) -> Vec<(State, String)> {
        let standing =
            |&(name, open, failed, overdue_seconds): &(&str, _, _, _)| Standing { name: name.to_owned(), open, failed, overdue_seconds };
        let mut findings = Findings::of("postgres");
        judge(&standings.iter().map(standing).collect::<Vec<_>>(), &mut findings);
        assert!(findings.list.iter().all(|finding| (finding.state == State::Ok) == finding.remedy.is_none()));
        findings.list.into_iter().map(|finding| (finding.state, finding.text)).collect()
    }

    #[test]
    fn sagas_that_have_failed_and_those_that_nobody_runs_are_told_by_name() {
        assert_eq!(judged(&[]), [(State::Ok, "0 under way, none has failed".into())]);
        assert_eq!(judged(&[("a", 2, 0, 0.4), ("b", 3, 0, 59.0)]), [(State::Ok, "5 under way, none has failed".into())]);
        let told = judged(&[("a", 2, 0, 0.4), ("b", 3, 1, 0.0), ("c", 1, 0, 120.0)]);
        assert_eq!(told.len(), 2);
        assert!(told.iter().all(|(state, _)| *state == State::Warn));
        assert!(told[0].1.contains("1 of b have failed") && told[1].1.starts_with("c: nobody has looked for 2"), "{told:?}");
    }
}
