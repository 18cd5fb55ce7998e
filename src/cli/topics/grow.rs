//! `tidings topics grow`.

use std::process::ExitCode;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::Instant;

use super::brokers;
use crate::cli::args::GrowArgs;
use crate::cli::config::Config;
use crate::cli::exit::{DONE, Failure};
use crate::cli::relay::{failure, session};
use crate::kafka::{self, Behind, groups_behind};
use crate::relay::operator::{Hold, OperatorError, hold, not_acknowledged, pin, release};

/// Between two looks at relays and consumers.
const LOOK: Duration = Duration::from_millis(500);

/// How much longer than the command waits the relays hold back: its last question and its last step take a while.
const MARGIN: Duration = Duration::from_secs(15);

/// Between two lines that say what is waited for.
const SAY: Duration = Duration::from_secs(10);

/// Gives a topic more partitions, or ends an attempt to.
pub(super) async fn run(config: &Config, args: &GrowArgs) -> Result<ExitCode, Failure> {
    let mut session = session(config, "topics grow").await?;
    let fail = |error| failure(config, error);
    let (schema, topic) = (&config.schema, &args.topic);
    let Some(partitions) = args.partitions else {
        let there = release(&mut session, schema, topic).await.map_err(fail)?;
        println!("{topic}: {}", if there { "the hold is ended; keys stay where they are" } else { "is not held" });
        return Ok(ExitCode::from(DONE));
    };
    let kafka = brokers(config)?;
    let actual = kafka::partitions_of(kafka, topic).await.map_err(|error| Failure::Failed(error.to_string()))?;
    if actual > partitions {
        return Err(Failure::Refused(format!(
            "`{topic}` has {actual} partitions already, and a topic cannot shrink\n  -> --partitions {actual}"
        )));
    }
    let held = hold(&mut session, schema, topic, partitions, args.timeout + MARGIN).await.map_err(fail)?;
    println!(
        "{topic}: {} {} hold back what goes to it, for {} min at most",
        if held.taken_up { "goes on; relays" } else { "relays" },
        held.relays.join(", "),
        args.timeout.as_secs().div_ceil(60)
    );
    let growing = Growing { config, kafka, args, held, actual, partitions, until: Instant::now() + args.timeout };
    match growing.run(&mut session).await {
        Ok(()) => {
            println!("{topic}: keys are spread over {partitions} partitions from now on");
            Ok(ExitCode::from(DONE))
        }
        Err(failure) => {
            let _ = release(&mut session, schema, topic).await;
            Err(failure)
        }
    }
}

struct Growing<'c> {
    config: &'c Config,
    kafka: &'c kafka::Settings,
    args: &'c GrowArgs,
    held: Hold,
    actual: i32,
    partitions: i32,
    until: Instant,
}

impl Growing<'_> {
    async fn run(&self, session: &mut PgConnection) -> Result<(), Failure> {
        let (schema, topic) = (&self.config.schema, &self.args.topic);
        let fail = |error: OperatorError| failure(self.config, error);
        self.relays_hold(session).await?;
        if !self.args.force {
            self.consumers_drain(session).await?;
        }
        if self.actual < self.partitions {
            kafka::grow_topic(self.kafka, topic, self.partitions).await.map_err(|error| Failure::Failed(error.to_string()))?;
        }
        pin(session, schema, topic, &self.held, self.partitions).await.map_err(fail)
    }

    async fn relays_hold(&self, session: &mut PgConnection) -> Result<(), Failure> {
        let mut said = Instant::now();
        loop {
            let waiting = self.look(session).await?;
            if waiting.is_empty() {
                return Ok(());
            }
            let text = format!("waits for relay {} to finish what is under way", waiting.join(", "));
            self.wait(&mut said, &text, "start the relay, or `tidings relay forget` it if it is gone for good").await?;
        }
    }

    async fn consumers_drain(&self, session: &mut PgConnection) -> Result<(), Failure> {
        let mut said = Instant::now();
        loop {
            let (kafka, topic, partitions, except) =
                (self.kafka.clone(), self.args.topic.clone(), self.actual, self.args.no_wait_for.clone());
            let asked = tokio::task::spawn_blocking(move || groups_behind(&kafka, &topic, partitions, &except));
            let behind = asked.await.map_err(|error| Failure::failed("cannot ask for consumer groups", &error))?;
            let behind = behind.map_err(|error| Failure::Failed(error.to_string()))?;
            if behind.is_empty() {
                return Ok(());
            }
            // The hold may be over meanwhile.
            self.look(session).await?;
            let text = format!("waits for {} to read to the end", behind.iter().map(describe).collect::<Vec<_>>().join("; "));
            self.wait(&mut said, &text, "run these consumers, or --no-wait-for GROUP for one that will not read the topic any more")
                .await?;
        }
    }

    async fn look(&self, session: &mut PgConnection) -> Result<Vec<String>, Failure> {
        let waiting = not_acknowledged(session, &self.config.schema, &self.args.topic, &self.held).await;
        waiting.map_err(|error| failure(self.config, error))
    }

    async fn wait(&self, said: &mut Instant, text: &str, remedy: &str) -> Result<(), Failure> {
        let topic = &self.args.topic;
        if Instant::now() + LOOK > self.until {
            return Err(Failure::Failed(format!(
                "{topic}: {text}, in vain: gives up after {} s, and keys stay where they are\n  -> {remedy}; longer: --timeout",
                self.args.timeout.as_secs()
            )));
        }
        if said.elapsed() > SAY {
            *said = Instant::now();
            println!("{topic}: {text}");
        }
        tokio::time::sleep(LOOK).await;
        Ok(())
    }
}

fn describe(behind: &Behind) -> String {
    let partitions: Vec<String> = behind.partitions.iter().map(i32::to_string).collect();
    format!("group {} (partitions {})", behind.group, partitions.join(", "))
}
