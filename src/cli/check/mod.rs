//! `tidings check`: the effective configuration, then the findings about Postgres and Kafka.
//!
//! `database` and `cluster` read the state of each end once. Pure functions derive the findings
//! from it.

mod cluster;
mod database;
mod password;
mod report;
mod sagas;
mod subscribers;

use std::process::ExitCode;

use super::config::Config;
use super::exit::{DONE, FAILED, Failure};
use super::output;
use super::time_limit;
use crate::relay::examine_positions;

/// State of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// No problem.
    Ok,
    /// Works until something else fails.
    Warn,
    /// A relay would not work.
    Fail,
}

/// Result of one check.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
struct Finding {
    /// `postgres` or `kafka`.
    end: &'static str,
    /// The checked object, for instance the name of a setting.
    name: String,
    state: State,
    /// Description of the result.
    text: String,
    /// Remedy, with the setting or the SQL.
    remedy: Option<String>,
}

/// Findings about one end, under construction.
struct Findings {
    end: &'static str,
    list: Vec<Finding>,
}

impl Findings {
    fn of(end: &'static str) -> Self {
        Self {
            end,
            list: Vec::new(),
        }
    }

    fn ok(&mut self, name: impl Into<String>, text: impl Into<String>) {
        self.add(State::Ok, name.into(), text.into(), None);
    }

    fn warn(
        &mut self,
        name: impl Into<String>,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(State::Warn, name.into(), text.into(), Some(remedy.into()));
    }

    fn fail(
        &mut self,
        name: impl Into<String>,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(State::Fail, name.into(), text.into(), Some(remedy.into()));
    }

    fn add(&mut self, state: State, name: String, text: String, remedy: Option<String>) {
        self.list.push(Finding {
            end: self.end,
            name,
            state,
            text,
            remedy,
        });
    }
}

/// Checks both ends and prints the findings.
pub(super) async fn run(config: &Config, json: bool) -> Result<ExitCode, Failure> {
    let looking = database::look(config);
    let (mut findings, topics) = match &config.database {
        Some(settings) => time_limit::within(settings, looking).await?,
        None => looking.await?,
    };
    findings.extend(cluster::look(config, &topics).await?);
    // The positions in Kafka matter only to a relay that passes the database checks.
    if let Some(options) = config.relay_options()
        && findings
            .iter()
            .all(|finding| finding.state != State::Fail || finding.end != "postgres")
    {
        findings.extend(
            examine_positions(&options)
                .await
                .into_iter()
                .map(|condition| database::finding("kafka", condition)),
        );
    }
    if json {
        output::json(&report::json(config, &findings))?;
    } else {
        output::lines(&report::text(config, &findings));
    }
    let failing = findings.iter().any(|finding| finding.state == State::Fail);
    Ok(ExitCode::from(if failing { FAILED } else { DONE }))
}
