//! Histories of subscribers and sagas under injected faults, generated from a seed.
//!
//! ```text
//! plan ─▶ stage: Postgres, Kafka, one relay
//!           ├─ writers    book on accounts and place orders, in transactions
//!           ├─ members    processes of two groups: one books, one runs the saga and its services
//!           └─ nemesis    injects the faults of the schedule; its operator replays dead letters
//!         then quiet: all faults are over, all writers have stopped, all events are handled
//! evidence (tables, letters, offsets) ─▶ checker ─▶ report
//! ```
//!
//! The checker trusts neither the relay nor the members. Writers record each event that they
//! commit. Each handler records its effect in its own transaction. Hostile records carry a mark, by
//! which the checker finds their outcome.

mod checker;
mod events;
mod evidence;
mod hostile;
mod member;
mod members;
mod nemesis;
mod orders;
mod plan;
mod release;
mod report;
mod schedule;
mod settle;
mod tables;
mod topics;
mod writers;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use dev_services::KafkaOptions;
use sqlx::{Connection as _, PgConnection};
use tokio::task::block_in_place;

use super::relays::Relays;
use super::stage::Stage;
use super::{Failure, relays};
use evidence::Evidence;
pub(crate) use member::run as member;
use members::Members;
use nemesis::Nemesis;
pub(crate) use plan::Plan;
pub(crate) use report::Report;
use settle::Operator;

/// If nothing changes for this time, the test stops waiting. Longer than any session, lease or step
/// of a saga lasts.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Members record their counters each second.
const COUNTED_AFTER: Duration = Duration::from_secs(3);

/// The number of times that the counters are read before a difference counts as a fault.
const COUNTED_WITHIN: usize = 20;

/// The programs of a history.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// The binary `tidings`, or a program that accepts the same arguments.
    pub(crate) tidings: PathBuf,
    /// The program of a member, with arguments that make it call [`member`].
    pub(crate) member: (PathBuf, Vec<String>),
}

/// Runs the history and checks the outcome. Calls `say` with each step.
///
/// # Errors
///
/// Returns an error if a server or a program of the test itself fails. The report contains the
/// faults of the members.
pub(crate) async fn run(
    plan: &Plan,
    programs: &Programs,
    mut say: impl FnMut(&str),
) -> Result<Report, Failure> {
    let mut stage = Stage::start(false, KafkaOptions::new(), false).await?;
    say(&format!("{}\n{}", stage.describe(), plan.command()));
    let (url, brokers) = (stage.service_url(), stage.brokers());
    tables::create(&mut PgConnection::connect(&url).await?).await?;
    topics::create_all(&brokers).await?;

    let relay = super::Plan::of_one_relay(plan.seed);
    let mut relays = Relays::new(
        &relays::Program {
            path: programs.tidings.clone(),
        },
        &relay,
        stage.relay_settings(),
    )?;
    if let Some(folder) = &plan.logs {
        relays.keep_logs_in(folder)?;
    }
    let (path, words) = programs.member.clone();
    let mut members = Members::new(
        &members::Program { path, words },
        plan.members,
        url.clone(),
        brokers.clone(),
        relays.folder(),
    );
    let began = Instant::now();
    relays.start_all()?;
    members.start_all()?;
    let writers = writers::start(plan, &url);
    let mut nemesis = Nemesis::new(
        plan,
        &url,
        Operator::new(programs.tidings.clone(), brokers.clone(), url.clone()),
    )?;
    let played = nemesis
        .play(
            plan,
            &mut stage,
            &mut relays,
            &mut members,
            &writers,
            &mut say,
        )
        .await;
    writers.stop().await;
    played?;
    let lasted = began.elapsed();

    say("quiet: all faults are over");
    let (operator, hostile) = nemesis.parts();
    let mut left = operator
        .settle(hostile.sent(), &mut members, &mut relays, SILENCE_MAX)
        .await?;
    let mut skipped = (0, 0);
    if left.is_none() {
        say("closing round: hostile records without a fault");
        tokio::time::sleep(COUNTED_AFTER).await;
        let (before, counted) = (hostile.sent().len(), operator.skipped().await?);
        hostile.round(&brokers, &url).await?;
        left = operator
            .settle(hostile.sent(), &mut members, &mut relays, SILENCE_MAX)
            .await?;
        let to_skip = hostile.sent()[before..]
            .iter()
            .filter(|sent| sent.hostility.end(&sent.topic) == hostile::End::Skipped)
            .count();
        for _ in 0..COUNTED_WITHIN {
            tokio::time::sleep(COUNTED_AFTER).await;
            skipped = (
                to_skip as u64,
                operator.skipped().await?.saturating_sub(counted),
            );
            if skipped.0 == skipped.1 {
                break;
            }
        }
    }
    block_in_place(|| operator.work())?;
    block_in_place(|| members.stop_all())?;
    relays.stop_all();
    let mut evidence = Evidence::read(&url).await?;
    evidence.letters = operator.letters();
    evidence.hostile = hostile.sent().to_vec();
    evidence.unfinished = block_in_place(|| topics::unfinished(&brokers))?;
    evidence.skipped = skipped;
    let verdict = checker::judge(&evidence);
    Ok(Report {
        plan: plan.clone(),
        lasted,
        faults: nemesis.counts(),
        kills: nemesis.kills(),
        releases: members.release(),
        verdict,
        refusal: relays.refusal(),
        ended: members.ended(),
        left,
        log_ends: format!("{}{}", relays.log_ends(), members.log_ends()),
    })
}
