//! Rounds of one scenario. Each round runs every path once, so that temporary load affects all of
//! them.

use crate::{
    ceiling::{self, Reading},
    harness::{
        Outcome,
        debezium::{self, Debezium, Tuning},
        outbox::{BASE_SLOT, Outbox},
        process::cpu_seconds,
        servers::Servers,
        tidings::{Mode, Tidings},
        topic::{self, Drain},
    },
    options::{Options, Sized},
    producer,
    report::{Path, Report},
};

/// Runs a scenario, from loading the backlog to the figures.
pub(crate) async fn run(
    options: &Options,
    servers: &Servers,
    tidings: &Tidings,
    debezium: Option<&Debezium>,
    sized: Sized,
) -> Outcome<Report> {
    let (scenario, backlog) = (sized.scenario, sized.backlog);
    println!(
        "\n{}: loading {} events, {} per transaction",
        scenario.name(),
        backlog.events,
        backlog.per_tx
    );
    let mut outbox =
        Outbox::create(servers, &format!("bench_{}", scenario.name()), tidings).await?;
    outbox.load(backlog).await?;
    let mut report = Report::new(sized);
    for round in 1..=options.rounds {
        if !options.skip_limits {
            for (reading, path) in [
                (Reading::Napping, Path::Ceiling),
                (Reading::AsItComes, Path::AsItComes),
            ] {
                let rate = ceiling::measure(
                    servers.postgres.port(),
                    &outbox.database,
                    BASE_SLOT,
                    backlog.events,
                    reading,
                )
                .await?;
                report.add(
                    path,
                    round,
                    Drain {
                        events_per_second: rate,
                        ..Drain::default()
                    },
                );
            }
            report.add(Path::Producer, round, bare_producer(servers, sized).await?);
        }
        for mode in Options::modes(scenario) {
            outbox.rewind_tidings().await?;
            let drain = drain(servers, &mut outbox, sized, Who::Tidings(tidings, *mode)).await?;
            report.add(Path::Tidings(*mode), round, drain);
        }
        if let Some(debezium) = debezium {
            outbox.copy_slot(debezium::SLOT).await?;
            let drain = self::drain(servers, &mut outbox, sized, Who::Debezium(debezium)).await?;
            report.add(Path::Debezium, round, drain);
            outbox.drop_slot(debezium::SLOT).await?;
        }
    }
    outbox.finish().await?;
    Ok(report)
}

enum Who<'a> {
    Tidings(&'a Tidings, Mode),
    Debezium(&'a Debezium),
}

async fn drain(
    servers: &Servers,
    outbox: &mut Outbox,
    sized: Sized,
    who: Who<'_>,
) -> Outcome<Drain> {
    let (brokers, topic) = (servers.kafka.brokers(), "bench.drain");
    topic::create(&brokers, topic).await?;
    let broker = cpu_seconds(servers.kafka.pid());
    let (relay, slot) = match who {
        Who::Tidings(tidings, mode) => (tidings.start(&outbox.url, topic, mode)?, "tidings"),
        Who::Debezium(debezium) => (
            debezium.start(outbox, topic, Tuning::Drain)?,
            debezium::SLOT,
        ),
    };
    let drain = topic::watch(&brokers, topic, sized.backlog.events, &relay)?;
    let walsender = outbox
        .walsender(slot)
        .await?
        .map(cpu_seconds)
        .unwrap_or_default();
    println!(
        "    walsender {walsender:.1} CPU s, broker {:.1} CPU s",
        cpu_seconds(servers.kafka.pid()) - broker
    );
    relay.stop()?;
    topic::delete(&brokers, topic).await?;
    Ok(drain)
}

async fn bare_producer(servers: &Servers, sized: Sized) -> Outcome<Drain> {
    let (brokers, topic) = (servers.kafka.brokers(), "bench.producer");
    topic::create(&brokers, topic).await?;
    let (rate, cpu) = producer::measure(&brokers, topic, sized.backlog)?;
    topic::delete(&brokers, topic).await?;
    let mut drain = Drain {
        events_per_second: rate,
        ..Drain::default()
    };
    drain.cost.cpu_seconds = cpu;
    Ok(drain)
}
