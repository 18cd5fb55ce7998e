//! `tidings relay forget`.

use std::process::ExitCode;

use super::{failure, session};
use crate::cli::args::ForgetArgs;
use crate::cli::config::Config;
use crate::cli::exit::{DONE, Failure, with_causes};
use crate::cli::output;
use crate::kafka;
use crate::relay::operator::forget;

/// Removes a relay that does not run.
pub(super) async fn run(config: &Config, args: &ForgetArgs) -> Result<ExitCode, Failure> {
    let mut session = session(config, "relay forget").await?;
    let forgotten = forget(&mut session, &config.schema, &args.relay).await.map_err(|error| failure(config, error))?;
    output::line(format_args!("{}: forgotten", args.relay));
    for (what, name) in [("slot", &forgotten.slot), ("publication", &forgotten.publication)] {
        match name {
            Some(name) => output::line(format_args!("  dropped its {what} {name}")),
            None => output::line(format_args!("  it had no {what}")),
        }
    }
    let Some(topic) = forgotten.topic else { return Ok(ExitCode::from(DONE)) };
    match (&config.kafka, args.delete_topic) {
        (Some(kafka), true) => match kafka::delete_topic(kafka, &topic).await.map_err(|error| Failure::Failed(with_causes(&error)))? {
            true => output::line(format_args!("  deleted the topic of its positions, {topic}")),
            false => output::line(format_args!("  the topic of its positions, {topic}, is not there")),
        },
        _ => {
            output::line(format_args!(
                "  the topic of its positions, {topic}, is left in Kafka if it delivered exactly once: a relay of this name would go on from there"
            ));
            output::line(format_args!("  -> kafka-topics.sh --delete --topic {topic}"));
        }
    }
    Ok(ExitCode::from(DONE))
}
