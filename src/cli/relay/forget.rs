//! `tidings relay forget`.

use std::process::ExitCode;

use super::{failure, session};
use crate::{
    cli::{
        args::ForgetArgs,
        config::{Config, Place},
        exit::{DONE, Failure, with_causes},
        output,
    },
    kafka,
    operator::forget,
};

/// Removes a relay that does not run.
pub(super) async fn run(config: &Config, args: &ForgetArgs) -> Result<ExitCode, Failure> {
    let relay = named(config, args.relay.as_deref())?;
    let mut session = session(config, "relay forget").await?;
    let forgotten = forget(&mut session, &config.schema, relay)
        .await
        .map_err(|error| failure(config, error))?;
    output::line(format_args!("{relay}: forgotten"));
    for (what, name) in [
        ("slot", &forgotten.slot),
        ("publication", &forgotten.publication),
    ] {
        match name {
            Some(name) => output::line(format_args!("  dropped its {what} {name}")),
            None => output::line(format_args!("  it had no {what}")),
        }
    }
    let Some(topic) = forgotten.topic else {
        return Ok(ExitCode::from(DONE));
    };
    match (&config.kafka, args.delete_topic) {
        (Some(kafka), true) => match kafka::delete_topic(kafka, &topic)
            .await
            .map_err(|error| Failure::Failed(with_causes(&error)))?
        {
            true => output::line(format_args!(
                "  deleted the topic of its positions, {topic}"
            )),
            false => output::line(format_args!(
                "  the topic of its positions, {topic}, is not there"
            )),
        },
        _ => {
            output::line(format_args!(
                "  the topic of its positions, {topic}, is left in Kafka if it delivered exactly once: a relay of this name would go on from there"
            ));
            output::line(format_args!(
                "  -> kafka-topics.sh --delete --topic {topic}"
            ));
        }
    }
    Ok(ExitCode::from(DONE))
}

/// The relay that is meant: by its argument, or by the name of the configuration if somebody has set it. The default name is not
/// taken for a decision.
fn named<'n>(config: &'n Config, argument: Option<&'n str>) -> Result<&'n str, Failure> {
    let place = config
        .entries
        .iter()
        .find(|entry| entry.key == "name")
        .map(|entry| &entry.place);
    match (argument, place) {
        (Some(argument), Some(Place::Flag(_))) if argument != config.name => {
            Err(Failure::Options(format!("`{argument}` and --name {} name two relays\n  -> give one of them", config.name)))
        }
        (Some(argument), _) => Ok(argument),
        (None, None | Some(Place::Default)) => Err(Failure::Options(
            "which relay is to be forgotten is not given\n  -> tidings relay forget --name RELAY; `tidings relay list` shows them".into(),
        )),
        (None, Some(_)) => Ok(&config.name),
    }
}
