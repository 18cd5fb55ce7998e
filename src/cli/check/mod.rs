//! `tidings check`: what holds and where it comes from, then what each end says about it.
//!
//! Each end is asked for facts once (`database`, `cluster`); what they mean is decided by pure functions over the facts.

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

/// How a finding stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// Works, until something else fails.
    Warn,
    /// A relay would not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
struct Finding {
    /// `postgres` or `kafka`.
    end: &'static str,
    /// What was looked at, for instance a setting's name.
    name: String,
    state: State,
    /// What was found.
    text: String,
    /// What to do, naming the setting or the SQL.
    remedy: Option<String>,
}

/// Findings of one end under construction.
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
        self.list.push(Finding {
            end: self.end,
            name: name.into(),
            state: State::Ok,
            text: text.into(),
            remedy: None,
        });
    }

    fn warn(
        &mut self,
        name: impl Into<String>,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.list.push(Finding {
            end: self.end,
            name: name.into(),
            state: State::Warn,
            text: text.into(),
            remedy: Some(remedy.into()),
        });
    }

    fn fail(
        &mut self,
        name: impl Into<String>,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.list.push(Finding {
            end: self.end,
            name: name.into(),
            state: State::Fail,
            text: text.into(),
            remedy: Some(remedy.into()),
        });
    }
}

/// Looks at both ends and prints what was found.
pub(super) async fn run(config: &Config, json: bool) -> Result<ExitCode, Failure> {
    let looking = database::look(config);
    let (mut findings, topics) = match &config.database {
        Some(settings) => time_limit::within(settings, looking).await?,
        None => looking.await?,
    };
    findings.extend(cluster::look(config, &topics).await?);
    // One that the database refuses already has nothing to look for in Kafka.
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
