//! `tidings relay forget`: removes a relay that will not run again.

use std::process::ExitCode;

use super::{failure, session};
use crate::{
    cli::{
        args::ForgetArgs,
        config::{Config, Place},
        database,
        exit::{DONE, Failure, with_causes},
        output,
    },
    inspect::relays::{RelayStatus, Status},
    kafka,
    operator::forget,
};

/// Removes a relay that is not running.
pub(super) async fn run(config: &Config, args: &ForgetArgs) -> Result<ExitCode, Failure> {
    let relay = named(config, args.relay.as_deref())?;
    if args.confirm.must_ask() {
        let database = database::open(config, "relay forget").await?;
        let status = Status::read(&database)
            .await
            .map_err(|error| database::unreadable(config, error, "the state of the relays"))?;
        // Without the relay, the command reports that it does not exist.
        if let Some(status) = status.relays.iter().find(|status| status.name == relay) {
            args.confirm.ask(&effect(status, args.delete_topic)).await?;
        }
    }
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
                "  the topic of its positions, {topic}, does not exist"
            )),
        },
        _ => {
            output::line(format_args!(
                "  if it delivered exactly once, the topic of its positions, {topic}, remains in \
                 Kafka: a relay of this name would continue from there"
            ));
            output::line(format_args!(
                "  -> kafka-topics.sh --delete --topic {topic}"
            ));
        }
    }
    Ok(ExitCode::from(DONE))
}

/// Formats the effect of the command.
fn effect(relay: &RelayStatus, delete_topic: bool) -> String {
    let slot = match relay.slot.exists {
        true => format!(", its slot {}", relay.slot.name),
        false => String::new(),
    };
    let topic = match delete_topic {
        true => " and the topic of its positions",
        false => "",
    };
    format!(
        "{}: its row{slot}, its publication{topic} will be removed\n\
         {} committed events that it has not published will not be published by it, and \
         retention may delete them",
        relay.name,
        relay.lag.text()
    )
}

/// Returns the relay to remove: the argument, or the configured name if an operator has set it. The
/// default name is not accepted.
fn named<'n>(config: &'n Config, argument: Option<&'n str>) -> Result<&'n str, Failure> {
    let place = config
        .entries
        .iter()
        .find(|entry| entry.key == "name")
        .map(|entry| &entry.place);
    match (argument, place) {
        (Some(argument), Some(Place::Flag(_))) if argument != config.name => {
            Err(Failure::Options(format!(
                "`{argument}` and --name {} are two relays\n  -> give one of them",
                config.name
            )))
        }
        (Some(argument), _) => Ok(argument),
        (None, None | Some(Place::Default)) => Err(Failure::Options(
            "no relay is named\n  -> run `tidings relay forget --name RELAY`; \
             `tidings relay list` shows the relays"
                .into(),
        )),
        (None, Some(_)) => Ok(&config.name),
    }
}
