//! A history under faults, told from a seed.
//!
//! ```text
//! plan ─▶ stage: Postgres, Kafka and the wires to them
//!           ├─ writers    change aggregates and publish, in every way a transaction can go
//!           ├─ relays     the binary, in processes that may be killed
//!           └─ nemesis    carries out the schedule: which fault, when
//!         then quiet: all faults are over, all writers have ended
//! committed (what Postgres says) + topic (what a read_committed consumer reads) ─▶ checker ─▶ report
//! ```
//!
//! The seed decides what writers do and which fault comes when; how they interleave is up to the machine, so a failing seed is likely,
//! not certain, to fail again. The checker asks neither the relay nor the writers: an event carries a *mark*, and a table that is written
//! by the same transaction says which marks were committed, as which version of which aggregate.

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

/// Something went wrong with the test itself.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// After this much silence nothing more is expected of the relays: longer than any lease, session or transaction lasts.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// After this much silence what is parked is tried again. More often it would slow down its release.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Plays the history and judges it. `say` hears what happens.
///
/// # Errors
/// When a server or a program of the test itself fails; what the relays do wrong is in the report.
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
        // One may have been found when its topic took it again.
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
    // A relay that drains may still send something that nobody misses.
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
