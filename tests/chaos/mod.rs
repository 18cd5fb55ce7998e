//! Histories of writers and relays under injected faults, generated from a seed.
//!
//! ```text
//! plan ─▶ stage: Postgres, Kafka and the proxies to them
//!           ├─ writers    change aggregates and publish, in every kind of transaction
//!           ├─ relays     processes of the binary, which may be killed
//!           └─ nemesis    injects the faults of the schedule
//!         then quiet: all faults are over, all writers have stopped
//! committed (rows in Postgres) + topic (records at read_committed) ─▶ checker ─▶ report
//! ```
//!
//! The seed determines the transactions of the writers and the sequence of faults. Their
//! interleaving depends on the machine, so a failing seed is likely, but not certain, to fail
//! again.
//!
//! The checker trusts neither the relay nor the writers. Each event carries a *mark*. The
//! transaction that publishes the event also records the mark in a table, with the aggregate and
//! its version.

mod checker;
mod committed;
mod faults;
pub(crate) mod inbound;
mod murmur2;
mod nemesis;
mod pause;
mod plan;
mod process;
mod random;
mod relays;
mod report;
mod rights;
mod schedule;
mod stage;
mod topic;
mod transaction;
mod words;
mod writers;

use std::time::{Duration, Instant};

use committed::Committed;
use nemesis::Nemesis;
pub(crate) use plan::Plan;
pub(crate) use relays::Program;
use relays::Relays;
pub(crate) use report::Report;
use stage::Stage;
use topic::Topics;

/// An error of the test itself rather than of the code under test.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// If no record arrives for this time, the test stops waiting. Longer than any lease, session or
/// transaction lasts.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// If no record arrives for this time, parked events are retried. A shorter interval would slow
/// down their release.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Runs the history and checks the outcome. Calls `say` with each step.
///
/// # Errors
///
/// Returns an error if a server or a program of the test itself fails. The report contains the
/// faults of the relays.
pub(crate) async fn run(
    plan: &Plan,
    program: &Program,
    mut say: impl FnMut(&str),
) -> Result<Report, Failure> {
    let mut stage = Stage::build(plan).await?;
    say(&format!("{}\n{}", stage.describe(), plan.command()));
    let mut relays = Relays::new(program, plan, stage.relay_settings())?;
    let began = Instant::now();
    relays.start_all()?;
    let writers = writers::start(plan, &stage.service_url());
    let mut nemesis = Nemesis::new(plan, &stage.service_url())?;
    let ended = nemesis.play(plan, &mut stage, &mut relays, &mut say).await;
    writers.stop().await;
    ended?;
    let lasted = began.elapsed();

    let committed = Committed::read(&stage.service_url()).await?;
    say(&format!("quiet: {} events are committed", committed.len()));
    let topics = Topics::new(&stage.brokers())?;
    let mut records = nemesis.take_archive();
    let mut wanted = committed.marks();
    for record in &records {
        wanted.remove(&record.mark);
    }
    let (mut heard, mut retried) = (Instant::now(), Instant::now());
    while !wanted.is_empty() && heard.elapsed() < SILENCE_MAX && relays.refusal().is_none() {
        relays.revive()?;
        // An event may have been parked at the moment when its topic accepted records again.
        if heard.max(retried).elapsed() > RETRY_AFTER {
            nemesis.retry_parked().await;
            retried = Instant::now();
        }
        let new = tokio::task::block_in_place(|| topics.read(Duration::from_millis(500)))?;
        if !new.is_empty() {
            heard = Instant::now();
        }
        for record in &new {
            wanted.remove(&record.mark);
        }
        records.extend(new);
    }
    // A relay may still send records while it drains, for example repeats. The checker must see
    // them.
    relays.stop_all();
    records.extend(tokio::task::block_in_place(|| topics.read_to_the_end())?);
    let verdict = checker::judge(&committed, &records, plan.partitions);
    let (refusal, log_ends) = (relays.refusal(), relays.log_ends());
    Ok(Report {
        plan: plan.clone(),
        lasted,
        faults: nemesis.counts(),
        kills: nemesis.kills(),
        verdict,
        refusal,
        log_ends,
    })
}
