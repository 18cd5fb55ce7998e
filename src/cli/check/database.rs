//! Checks of the database: the start conditions of a relay, sagas, and the topics of the events.

use sqlx::{AssertSqlSafe, PgPool};

use super::{Finding, Findings, State};
use crate::cli::config::Config;
use crate::cli::database as connection;
use crate::cli::exit::Failure;
use crate::relay::{Condition, Level, examine_all};

/// Number of the newest events whose topics are checked: enough to include every kind of event, and
/// few enough to read at once.
const NEWEST: i64 = 10_000;

/// Returns the findings, and the topics of the events.
pub(super) async fn look(config: &Config) -> Result<(Vec<Finding>, Vec<String>), Failure> {
    let settings = connection::settings(config)?;
    let mut findings = Findings::of("postgres");
    let pool = match connection::connect(settings, "check").await {
        Ok(pool) => pool,
        Err(error) => {
            let text = connection::unreachable(settings, &error);
            let (text, remedy) = text.split_once("\n  -> ").unwrap_or((&text, ""));
            findings.fail("reachable", text, remedy);
            return Ok((findings.list, Vec::new()));
        }
    };
    findings.ok("reachable", settings.redacted());
    super::password::look(settings, &mut findings).await;
    let options = config
        .relay_options()
        .ok_or_else(|| Failure::Failed("no brokers are configured".into()))?;
    match examine_all(&options).await {
        Ok(conditions) => findings.list.extend(
            conditions
                .into_iter()
                .map(|condition| finding(findings.end, condition)),
        ),
        Err(text) => findings.fail(
            "catalogs",
            text,
            "check that the server is PostgreSQL of a supported version",
        ),
    }
    if findings
        .list
        .iter()
        .any(|finding| finding.name == "tables" && finding.state == State::Ok)
    {
        super::sagas::look(&pool, &config.schema, &mut findings).await;
        super::subscribers::look(&pool, &config.schema, &mut findings).await;
    }
    let topics = if config.debezium.is_none() {
        topics(&pool, config).await.unwrap_or_default()
    } else {
        Vec::new()
    };
    Ok((findings.list, topics))
}

async fn topics(pool: &PgPool, config: &Config) -> Result<Vec<String>, sqlx::Error> {
    let sql = include_str!("topics.sql").replace("{schema}", &config.schema);
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(NEWEST)
        .bind(&config.topic)
        .fetch_all(pool)
        .await
}

pub(super) fn finding(end: &'static str, condition: Condition) -> Finding {
    let state = match condition.level {
        Level::Met => State::Ok,
        Level::Warning => State::Warn,
        Level::Waits | Level::Refused => State::Fail,
    };
    Finding {
        end,
        name: condition.name,
        state,
        text: condition.text,
        remedy: condition.remedy,
    }
}
