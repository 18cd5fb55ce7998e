//! Injection of the scheduled faults. Each fault is over when its step returns.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, PgPool};
use tokio::task::block_in_place;
use tokio::time::{sleep, timeout};

use super::super::Failure;
use super::super::nemesis::{READ_ONLY, READ_WRITE, pool};
use super::super::pause::Pause;
use super::super::relays::Relays;
use super::super::stage::Stage;
use super::events::{BOOKING_TYPES, LEDGER};
use super::hostile::Sender;
use super::members::Members;
use super::plan::Plan;
use super::schedule::{Kind, Schedule, Step};
use super::settle::Operator;
use super::tables::GATE;
use super::topics;
use super::writers::Writers;

/// A running server responds within this time. A statement to a stopped server may fail.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// The time without progress after which a deletion of topics is skipped.
const SETTLE_SILENCE: Duration = Duration::from_secs(45);

const END_SESSIONS: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity where \
                            application_name = 'chaos-member'";

/// Counts the booking types that an instance of the group handles. One second after its
/// registration, no member skips these types.
const REGISTERED: &str = "select count(distinct t.type) from tidings.subscriber s, \
                          unnest(s.types) t (type)
                          where s.consumer = $1 and t.type = any($2) \
                              and s.started_at < clock_timestamp() - interval '1 second'";

/// The component that injects faults.
pub(crate) struct Nemesis {
    pool: PgPool,
    url: String,
    hostile: Sender,
    operator: Operator,
    counts: BTreeMap<Kind, usize>,
    kills: usize,
}

impl Nemesis {
    /// # Errors
    ///
    /// Returns an error if the URL is invalid.
    pub(crate) fn new(plan: &Plan, url: &str, operator: Operator) -> Result<Self, Failure> {
        let counts = plan.faults.iter().map(|kind| (*kind, 0)).collect();
        Ok(Self {
            pool: pool(url, ANSWER_LIMIT)?,
            url: url.to_owned(),
            hostile: Sender::new(plan.seed),
            operator,
            counts,
            kills: 0,
        })
    }

    /// Injects one fault after the other until the plan's length is reached or a relay has stopped
    /// permanently.
    ///
    /// # Errors
    ///
    /// Returns an error if a server of the test cannot be stopped or started.
    pub(crate) async fn play(
        &mut self,
        plan: &Plan,
        stage: &mut Stage,
        relays: &mut Relays,
        members: &mut Members,
        writers: &Writers,
        say: &mut impl FnMut(&str),
    ) -> Result<(), Failure> {
        let began = Instant::now();
        for step in Schedule::new(plan) {
            sleep(step.after).await;
            if began.elapsed() >= plan.length || relays.refusal().is_some() {
                break;
            }
            self.allow_registered_types(writers).await;
            say(&format!("{:8.1} s  {step}", began.elapsed().as_secs_f32()));
            let reached = self.carry_out(&step, stage, relays, members).await;
            let reached = reached.map_err(|error| {
                format!(
                    "{}: {error}\n{}{}",
                    step.kind,
                    relays.log_ends(),
                    members.log_ends()
                )
            })?;
            if !reached {
                say(&format!(
                    "{:8.1} s  {} is skipped",
                    began.elapsed().as_secs_f32(),
                    step.kind
                ));
            }
            block_in_place(|| relays.revive().and_then(|()| members.revive()))?;
            *self.counts.entry(step.kind).or_default() += usize::from(reached);
        }
        self.allow_registered_types(writers).await;
        Ok(())
    }

    /// Returns the number of injections of each fault.
    pub(crate) fn counts(&self) -> BTreeMap<Kind, usize> {
        self.counts.clone()
    }

    /// Returns the number of members that were killed with `kill -9`, including kills during other
    /// faults.
    pub(crate) fn kills(&self) -> usize {
        self.kills
    }

    pub(crate) fn parts(&mut self) -> (&mut Operator, &mut Sender) {
        (&mut self.operator, &mut self.hostile)
    }

    /// Allows writers to publish a new type once a member has registered for it, as the contract
    /// requires.
    async fn allow_registered_types(&self, writers: &Writers) {
        let types: Vec<_> = BOOKING_TYPES
            .iter()
            .map(|kind| (*kind).to_owned())
            .collect();
        let count = sqlx::query_scalar::<_, i64>(REGISTERED)
            .bind(LEDGER)
            .bind(types)
            .fetch_one(&self.pool);
        if let Ok(Ok(count)) = timeout(ANSWER_LIMIT, count).await {
            writers.allow_types(usize::try_from(count).unwrap_or_default());
        }
    }

    /// Injects the fault of a step. Returns false if this was not possible.
    async fn carry_out(
        &mut self,
        step: &Step,
        stage: &mut Stage,
        relays: &mut Relays,
        members: &mut Members,
    ) -> Result<bool, Failure> {
        let which = step.which;
        match step.kind {
            Kind::Kill => self.kill(which, members)?,
            Kind::Restart => block_in_place(|| members.restart(which))?,
            Kind::Freeze => {
                members.signal(which, "STOP")?;
                self.last(step, which + 1, members).await?;
                members.signal(which, "CONT")?;
            }
            Kind::Deploy => self.deploy(step, members).await?,
            Kind::ReadOnly => {
                self.run(READ_ONLY).await;
                self.last(step, which, members).await?;
                self.run(READ_WRITE).await;
            }
            Kind::EndSessions => self.run(END_SESSIONS).await,
            Kind::RestartPostgres | Kind::CrashPostgres => {
                let hard = step.kind == Kind::CrashPostgres;
                block_in_place(|| {
                    if hard {
                        stage.primary.kill()
                    } else {
                        stage.primary.stop()
                    }
                })?;
                self.last(step, which, members).await?;
                block_in_place(|| stage.primary.start_again())?;
            }
            Kind::KillBroker => {
                block_in_place(|| stage.broker(0).kill())?;
                self.last(step, which, members).await?;
                block_in_place(|| stage.broker(0).start_again())?;
            }
            // A broker that has just restarted may refuse.
            Kind::AddPartitions => {
                return Ok(topics::add_partition(&stage.brokers()).await.is_ok());
            }
            Kind::Hostile => {
                return Ok(self
                    .hostile
                    .round(&stage.brokers(), &self.url)
                    .await
                    .is_ok());
            }
            Kind::RecreateLetters | Kind::RecreateRetries | Kind::RecreateTopic => {
                return self.recreate(step, stage, relays, members).await;
            }
        }
        Ok(true)
    }

    /// Waits for the duration of a fault, and kills a member during it if the step includes a kill.
    async fn last(
        &mut self,
        step: &Step,
        which: usize,
        members: &mut Members,
    ) -> Result<(), Failure> {
        let before = step.before_kill();
        sleep(before).await;
        if step.kill_meanwhile && members.count() > 1 {
            self.kill(which, members)?;
        }
        sleep(step.lasts - before).await;
        Ok(())
    }

    fn kill(&mut self, which: usize, members: &mut Members) -> Result<(), Failure> {
        self.kills += usize::from(block_in_place(|| members.kill(which))?);
        Ok(())
    }

    /// Replaces the members one by one with the next release.
    async fn deploy(&mut self, step: &Step, members: &mut Members) -> Result<(), Failure> {
        let (release, count) = (members.release() + 1, members.count());
        for at in 0..count {
            block_in_place(|| members.deploy(at, release))?;
            sleep(step.lasts / u32::try_from(count)?).await;
            if step.kill_meanwhile && at == 0 {
                self.kill(step.which, members)?;
            }
        }
        Ok(())
    }

    /// Pauses the writers, waits until all events are handled and all letters are read, and deletes
    /// topics. Returns false if this point was not reached.
    async fn recreate(
        &mut self,
        step: &Step,
        stage: &Stage,
        relays: &mut Relays,
        members: &mut Members,
    ) -> Result<bool, Failure> {
        let Some(pause) = Pause::begin(&self.url, GATE).await else {
            return Ok(false);
        };
        let left = self
            .operator
            .settle(self.hostile.sent(), members, relays, SETTLE_SILENCE)
            .await?;
        if left.is_none() {
            self.delete_topics(step, &stage.brokers(), members).await?;
        }
        pause.end().await;
        Ok(left.is_none())
    }

    /// Deletes topics of dead letters and of retries, which the members create again, or deletes
    /// and creates a topic that members read. Members run meanwhile, except that they are stopped
    /// in half of the cases of a subscribed topic.
    async fn delete_topics(
        &mut self,
        step: &Step,
        brokers: &str,
        members: &mut Members,
    ) -> Result<(), Failure> {
        let (letters, retries) = topics::letters_and_retries(brokers)?;
        let half = step.which.is_multiple_of(2);
        if step.kind == Kind::RecreateLetters {
            self.operator.letters_are_deleted();
        }
        match step.kind {
            Kind::RecreateLetters if half => return topics::delete(brokers, &letters).await,
            Kind::RecreateLetters => {
                return topics::delete(brokers, &[letters, retries].concat()).await;
            }
            Kind::RecreateRetries => return topics::delete(brokers, &retries).await,
            _ => {}
        }
        let subscribed = topics::subscribed();
        let topic = subscribed[(step.which / 2) % subscribed.len()].0;
        if half {
            return topics::create_again(brokers, topic).await;
        }
        block_in_place(|| members.stop_all())?;
        topics::create_again(brokers, topic).await?;
        block_in_place(|| members.start_all())
    }

    /// Runs the statements one by one in one session. Ignores errors, because the object of the
    /// fault may not exist.
    async fn run(&self, statements: &str) {
        let Ok(mut session) = self.pool.acquire().await else {
            return;
        };
        for statement in statements.split(';') {
            let statement = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()));
            let _ = timeout(ANSWER_LIMIT, statement.execute(&mut *session)).await;
        }
    }
}
