//! Checks of the database: the start conditions of a relay, sagas, and the topics of the events.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, PgPool};

use super::{Finding, Findings, State};
use crate::cli::config::Config;
use crate::cli::database as connection;
use crate::cli::exit::Failure;
use crate::inspect::Database;
use crate::relay::{Condition, Level, TopicRule, TopicTemplate, examine_all};

/// Number of the newest events whose topics are checked: enough to include every kind of event, and
/// few enough to read at once.
const NEWEST: i64 = 10_000;

/// Maximum number of topics that are checked.
const TOPICS_MAX: usize = 200;

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
        Err(error) => findings.fail(
            "catalogs",
            error.full(),
            "check that the server is PostgreSQL of a supported version",
        ),
    }
    if findings
        .list
        .iter()
        .any(|finding| finding.name == "tables" && finding.state == State::Ok)
    {
        super::sagas::look(&pool, &config.schema, &mut findings).await;
        super::subscribers::look(&Database::new(pool.clone(), &config.schema), &mut findings).await;
    }
    let topics = if config.debezium.is_none() {
        topics(&pool, config).await.unwrap_or_default()
    } else {
        Vec::new()
    };
    Ok((findings.list, topics))
}

async fn topics(pool: &PgPool, config: &Config) -> Result<Vec<String>, sqlx::Error> {
    let Ok(template) = TopicTemplate::parse(&config.topic) else {
        return Ok(Vec::new());
    };
    let rule = TopicRule {
        template,
        rewrite: config.topic_rewrite.clone(),
    };
    let sql = include_str!("topics.sql").replace("{schema}", &config.schema);
    let rows: Vec<(Option<String>, Option<String>, Option<String>)> =
        sqlx::query_as(AssertSqlSafe(sql))
            .bind(NEWEST)
            .fetch_all(pool)
            .await?;
    let topics = rows.into_iter().filter_map(|(topic, kind, event_type)| {
        topic.or_else(|| Some(rule.topic(&kind?, &event_type?)))
    });
    let topics: BTreeSet<String> = topics.collect();
    Ok(topics.into_iter().take(TOPICS_MAX).collect())
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
