//! `tidings topics grow`: adds partitions to a topic.

use std::process::ExitCode;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::Instant;

use crate::{
    cli::{
        args::GrowArgs,
        brokers,
        config::Config,
        escape::escaped,
        exit::{DONE, Failure, with_causes},
        output,
        progress::{Progress, is_visible},
        relay::{failure, session},
    },
    kafka::{self, Behind, Read, groups_behind},
    operator::{Hold, OperatorError, Unacknowledged, hold, not_acknowledged, pin, release},
};

/// Interval between two checks of relays and consumers.
const LOOK: Duration = Duration::from_millis(500);

/// Distance from the end of a partition, in records, that a consumer group must reach before events
/// are held back.
const NEAR: i64 = 10_000;

/// Time that relays hold back beyond the time of the command, for its last check and its last step.
const MARGIN: Duration = Duration::from_secs(15);

/// Interval between two progress lines.
const SAY: Duration = Duration::from_secs(10);

/// Adds partitions to a topic, or ends an interrupted attempt.
pub(super) async fn run(config: &Config, args: &GrowArgs) -> Result<ExitCode, Failure> {
    let mut session = session(config, "topics grow").await?;
    let fail = |error| failure(config, error);
    let (schema, topic) = (&config.schema, &args.topic);
    let Some(partitions) = args.partitions else {
        return abort(config, args, &mut session).await;
    };
    let kafka = brokers::settings(config)?;
    let actual = actual_partitions(kafka, topic, partitions).await?;
    args.confirm.ask(&effect(args, actual, partitions)).await?;
    let until = Instant::now() + args.timeout;
    let consumers = Consumers {
        kafka,
        args,
        partitions: actual,
    };
    if !args.force {
        consumers.come_near(until).await?;
    }
    let time = args
        .hold
        .min(until.saturating_duration_since(Instant::now()));
    let held = hold(&mut session, schema, topic, partitions, time + MARGIN)
        .await
        .map_err(fail)?;
    output::line(format_args!(
        "{topic}: {} {} hold back its events and all later ones, for {} s at most",
        if held.taken_up {
            "hold resumed; relays"
        } else {
            "relays"
        },
        held.relays.join(", "),
        (time + MARGIN).as_secs()
    ));
    let growing = Growing {
        config,
        kafka,
        args,
        held,
        actual,
        partitions,
        consumers,
    };
    let until = Instant::now() + time;
    let patience = Patience {
        topic,
        until,
        what: time,
        longer: "--hold and --timeout",
        said: Instant::now(),
        progress: Progress::waiting(escaped(topic)),
    };
    match growing.run(&mut session, patience).await {
        Ok(()) => {
            output::line(format_args!(
                "{topic}: keys are now spread over {partitions} partitions"
            ));
            Ok(ExitCode::from(DONE))
        }
        Err(failure) => {
            let _ = release(&mut session, schema, topic).await;
            Err(failure)
        }
    }
}

/// Ends an interrupted attempt.
async fn abort(
    config: &Config,
    args: &GrowArgs,
    session: &mut PgConnection,
) -> Result<ExitCode, Failure> {
    let topic = &args.topic;
    let effect = format!(
        "{topic}: relays stop holding back its events; a command that is still growing the topic \
         fails"
    );
    args.confirm.ask(&effect).await?;
    let released = release(session, &config.schema, topic).await;
    let was_held = released.map_err(|error| failure(config, error))?;
    output::line(format_args!(
        "{topic}: {}",
        if was_held {
            "the hold has ended; keys stay in their partitions"
        } else {
            "is not held"
        }
    ));
    Ok(ExitCode::from(DONE))
}

/// Formats the effect of the command.
fn effect(args: &GrowArgs, actual: i32, partitions: i32) -> String {
    let order = match args.force {
        true => {
            "waits for no consumer group, so events of one aggregate may be consumed out of order"
        }
        false => "waits for its consumer groups to read to the end meanwhile",
    };
    format!(
        "{}: {actual} partitions now, {partitions} afterwards; a topic cannot shrink\n\
         relays hold back its events and all later ones for up to {} s; the command {order}",
        args.topic,
        (args.hold + MARGIN).as_secs()
    )
}

/// Returns the number of partitions of the topic. Refuses a topic that has more than `wanted`.
async fn actual_partitions(
    kafka: &kafka::Settings,
    topic: &str,
    wanted: i32,
) -> Result<i32, Failure> {
    let actual = kafka::partitions_of(kafka, topic)
        .await
        .map_err(|error| Failure::Failed(with_causes(&error)))?;
    if actual > wanted {
        return Err(Failure::Refused(format!(
            "`{}` already has {actual} partitions, and a topic cannot shrink\n  \
             -> use --partitions {actual}",
            escaped(topic)
        )));
    }
    Ok(actual)
}

/// Remedy for consumers that do not catch up.
const CONSUMERS: &str =
    "run these consumers, or use --no-wait-for GROUP for a group that no longer reads the topic";

/// The consumer groups of the topic.
struct Consumers<'c> {
    kafka: &'c kafka::Settings,
    args: &'c GrowArgs,
    partitions: i32,
}

impl Consumers<'_> {
    /// Waits until every group is near the end of the topic. Events flow during this wait, so a
    /// group that needs hours to catch up does not stop the relays.
    async fn come_near(&self, until: Instant) -> Result<(), Failure> {
        let mut patience = Patience {
            topic: &self.args.topic,
            until,
            what: self.args.timeout,
            longer: "--timeout",
            said: Instant::now(),
            progress: Progress::waiting(escaped(&self.args.topic)),
        };
        while let Some(behind) = self.behind(Read::NearlyToTheEnd(NEAR)).await? {
            let text =
                format!("nothing is held back yet; waiting for {behind} to get near the end");
            patience.wait(&text, CONSUMERS).await?;
        }
        Ok(())
    }

    /// Returns a description of the groups that have not read far enough.
    async fn behind(&self, read: Read) -> Result<Option<String>, Failure> {
        let GrowArgs {
            topic, no_wait_for, ..
        } = self.args;
        let behind = groups_behind(self.kafka, topic, self.partitions, no_wait_for, read).await;
        let behind = behind.map_err(|error| Failure::Failed(with_causes(&error)))?;
        Ok(
            (!behind.is_empty())
                .then(|| behind.iter().map(describe).collect::<Vec<_>>().join("; ")),
        )
    }
}

/// Waits, prints progress, and fails when the time is over.
struct Patience<'c> {
    topic: &'c str,
    until: Instant,
    what: Duration,
    /// The option that extends the time.
    longer: &'static str,
    said: Instant,
    progress: Progress,
}

impl Patience<'_> {
    async fn wait(&mut self, text: &str, remedy: &str) -> Result<(), Failure> {
        let Self {
            topic,
            until,
            what,
            longer,
            ..
        } = *self;
        if Instant::now() + LOOK > until {
            return Err(Failure::Failed(format!(
                "{}: {}: timed out after {} s; keys stay in their partitions\n  \
                 -> {remedy}; to wait longer, set {longer}",
                escaped(topic),
                escaped(text),
                what.as_secs()
            )));
        }
        self.progress
            .describe(format!("{}: {}", escaped(topic), escaped(text)));
        self.progress.tick();
        if self.said.elapsed() > SAY && !is_visible() {
            self.said = Instant::now();
            output::line(format_args!("{topic}: {text}"));
        }
        tokio::time::sleep(LOOK).await;
        Ok(())
    }
}

struct Growing<'c> {
    config: &'c Config,
    kafka: &'c kafka::Settings,
    args: &'c GrowArgs,
    held: Hold,
    actual: i32,
    partitions: i32,
    consumers: Consumers<'c>,
}

impl Growing<'_> {
    async fn run(
        &self,
        session: &mut PgConnection,
        mut patience: Patience<'_>,
    ) -> Result<(), Failure> {
        let (schema, topic) = (&self.config.schema, &self.args.topic);
        let fail = |error: OperatorError| failure(self.config, error);
        self.relays_hold(session, &mut patience).await?;
        if !self.args.force {
            self.consumers_drain(session, &mut patience).await?;
        }
        if self.actual < self.partitions {
            kafka::grow_topic(self.kafka, topic, self.partitions)
                .await
                .map_err(|error| Failure::Failed(with_causes(&error)))?;
        }
        pin(session, schema, topic, &self.held, self.partitions)
            .await
            .map_err(fail)
    }

    async fn relays_hold(
        &self,
        session: &mut PgConnection,
        patience: &mut Patience<'_>,
    ) -> Result<(), Failure> {
        loop {
            let waiting = self.look(session).await?;
            if waiting.is_empty() {
                return Ok(());
            }
            let waiting: Vec<String> = waiting.iter().map(named).collect();
            let text = format!(
                "waiting for relay {} to finish the events in flight",
                waiting.join(", ")
            );
            patience
                .wait(
                    &text,
                    "start the relay, or run `tidings relay forget` if it will not run again",
                )
                .await?;
        }
    }

    async fn consumers_drain(
        &self,
        session: &mut PgConnection,
        patience: &mut Patience<'_>,
    ) -> Result<(), Failure> {
        while let Some(behind) = self.consumers.behind(Read::ToTheEnd).await? {
            // Fails if the hold has expired.
            self.look(session).await?;
            patience
                .wait(
                    &format!("waiting for {behind} to read to the end"),
                    CONSUMERS,
                )
                .await?;
        }
        Ok(())
    }

    async fn look(&self, session: &mut PgConnection) -> Result<Vec<Unacknowledged>, Failure> {
        let waiting =
            not_acknowledged(session, &self.config.schema, &self.args.topic, &self.held).await;
        waiting.map_err(|error| failure(self.config, error))
    }
}

/// Returns the name of a relay and the process that leads.
fn named(relay: &Unacknowledged) -> String {
    let Unacknowledged { relay, leader } = relay;
    match leader {
        Some(process) => format!("{relay} ({process} leads)"),
        None => format!("{relay} (no process leads)"),
    }
}

fn describe(behind: &Behind) -> String {
    let partitions: Vec<String> = behind.partitions.iter().map(i32::to_string).collect();
    format!(
        "group {} (partitions {})",
        behind.group,
        partitions.join(", ")
    )
}
