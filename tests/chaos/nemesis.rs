//! Carries out the schedule. Every fault is over when its step is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::task::block_in_place;
use tokio::time::{sleep, timeout};

use super::pause::{self, Pause};
use super::plan::{Length, Plan};
use super::process::send;
use super::relays::{NAME, Relays};
use super::schedule::{Kind, Schedule, Step};
use super::stage::Stage;
use super::topic::Record;
use super::{Failure, rights, topic};

/// A server that is up answers within this; one that is not does not matter.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// Between kills, at least this often, when there is nothing but kills.
const STEPS_PER_KILL_MAX: usize = 60;

/// The record size that a small topic takes, and what Kafka takes otherwise.
const SMALL: u32 = 100_000;
const USUAL: u32 = 1_048_588;

const END_STREAM: &str = "select pg_terminate_backend(active_pid) from pg_replication_slots where active_pid is not null";
const DROP_SLOT: &str = "select pg_terminate_backend(active_pid, 2000) from pg_replication_slots where slot_name like 'tidings_chaos%';
                         select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name like 'tidings_chaos%'";
/// Each statement names the publication that the relay has recorded.
const NARROW: &str = "do $$ begin execute (select format('alter publication %I set (publish = ''update'')', publication)
                      from tidings.relay where name = 'chaos'); end $$";
const WIDEN: &str = "do $$ begin execute (select format('alter publication %I set (publish = ''insert'')', publication)
                     from tidings.relay where name = 'chaos'); end $$";
const DROP_PUBLICATION: &str =
    "do $$ begin execute (select format('drop publication %I', publication)
                                from tidings.relay where name = 'chaos'); end $$";
const MAKE_PUBLICATION: &str = "do $$ begin execute (select
                                format('create publication %I for table tidings.outbox with (publish = ''insert'')', publication)
                                from tidings.relay where name = 'chaos'); end $$";

/// What an operator does about events that were parked because a topic did not take them. Those that wait for a topic need nobody.
const RETRY: &str = "update tidings.parked set action = 'retry' where reason is not null and action is null and waits_for is null";

/// Sessions that exist are ended; new ones are read-only.
pub(crate) const READ_ONLY: &str = "set default_transaction_read_only = off;
    alter database postgres set default_transaction_read_only = on;
    select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = 'postgres' and pid <> pg_backend_pid()";

/// The same the other way; sessions that are read-only stay so.
pub(crate) const READ_WRITE: &str = "set default_transaction_read_only = off;
    alter database postgres reset default_transaction_read_only";

const WALSENDER: &str =
    "select active_pid from pg_replication_slots where active_pid is not null limit 1";

/// Writers change a row of this table in each transaction.
const TABLE: &str = "account";

/// Topics have at most this many partitions more than at first.
const MORE_PARTITIONS: i32 = 4;

/// Who breaks things.
pub(crate) struct Nemesis {
    pool: PgPool,
    url: String,
    /// Records of topics that were deleted since.
    archive: Vec<Record>,
    counts: BTreeMap<Kind, usize>,
    kills: usize,
}

impl Nemesis {
    /// # Errors
    /// When the URL is none.
    pub(crate) fn new(plan: &Plan, url: &str) -> Result<Self, Failure> {
        let options: PgConnectOptions = url.parse()?;
        let pool = PgPoolOptions::new()
            .max_connections(2)
            .acquire_timeout(ANSWER_LIMIT)
            .connect_lazy_with(options);
        Ok(Self {
            pool,
            url: url.to_owned(),
            archive: Vec::new(),
            counts: plan.faults.iter().map(|kind| (*kind, 0)).collect(),
            kills: 0,
        })
    }

    /// Breaks one thing after the other until the plan's length is reached, or a relay has stopped for good.
    ///
    /// # Errors
    /// When a server of the test does not do what it is told.
    pub(crate) async fn play(
        &mut self,
        plan: &Plan,
        stage: &mut Stage,
        relays: &mut Relays,
        say: &mut impl FnMut(&str),
    ) -> Result<(), Failure> {
        let began = Instant::now();
        for (number, step) in Schedule::new(plan).enumerate() {
            let done = match plan.length {
                Length::Time(time) => began.elapsed() >= time,
                Length::Kills(kills) => self.kills >= kills || number >= STEPS_PER_KILL_MAX * kills,
            };
            if done || relays.refusal().is_some() {
                break;
            }
            sleep(step.after).await;
            say(&format!("{:8.1} s  {step}", began.elapsed().as_secs_f32()));
            self.carry_out(plan, &step, stage, relays)
                .await
                .map_err(|error| format!("{}: {error}\n{}", step.kind, relays.log_ends()))?;
            relays.revive()?;
            *self.counts.entry(step.kind).or_default() += 1;
        }
        Ok(())
    }

    /// Has what is parked tried again: nothing is in its way any more.
    pub(crate) async fn retry_parked(&self) {
        self.run(RETRY).await;
    }

    /// The records of deleted topics, in the order of their partitions.
    pub(crate) fn take_archive(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.archive)
    }

    /// How often each fault came.
    pub(crate) fn counts(&self) -> BTreeMap<Kind, usize> {
        self.counts.clone()
    }

    /// How often a relay was killed with -9, within other faults too.
    pub(crate) fn kills(&self) -> usize {
        self.kills
    }

    async fn carry_out(
        &mut self,
        plan: &Plan,
        step: &Step,
        stage: &mut Stage,
        relays: &mut Relays,
    ) -> Result<(), Failure> {
        let which = step.which;
        match step.kind {
            Kind::Kill => self.kill(step, relays).await?,
            Kind::Restart => block_in_place(|| relays.restart(which))?,
            Kind::Freeze => {
                let leader = self.leader().await;
                let frozen = relays.signal(leader, which, "STOP")?;
                self.last(step, relays).await?;
                relays.signal(frozen, which, "CONT")?;
            }
            Kind::KillBroker | Kind::StopBroker => {
                let hard = step.kind == Kind::KillBroker;
                block_in_place(|| {
                    if hard {
                        stage.broker(which).kill()
                    } else {
                        stage.broker(which).stop()
                    }
                })?;
                self.last(step, relays).await?;
                block_in_place(|| stage.broker(which).start_again())?;
            }
            Kind::FreezeBroker => {
                block_in_place(|| stage.broker(which).pause())?;
                self.last(step, relays).await?;
                block_in_place(|| stage.broker(which).resume())?;
            }
            Kind::CutPostgres => stage.relay_wire.cut(),
            Kind::StallPostgres => {
                stage.relay_wire.stall();
                self.last(step, relays).await?;
                stage.relay_wire.resume();
            }
            Kind::CutKafka => stage.broker(which).proxy().cut(),
            Kind::StallKafka => {
                stage.broker(which).proxy().stall();
                self.last(step, relays).await?;
                if step.kill_meanwhile && plan.repeats() {
                    // What the dead leader had sent must not arrive behind its successor's: only exactly-once promises anything then.
                    stage.broker(which).proxy().cut();
                }
                stage.broker(which).proxy().resume();
            }
            Kind::CrashPostgres | Kind::RestartPostgres => {
                let hard = step.kind == Kind::CrashPostgres;
                block_in_place(|| {
                    if hard {
                        stage.primary.kill()
                    } else {
                        stage.primary.stop()
                    }
                })?;
                self.last(step, relays).await?;
                block_in_place(|| stage.primary.start_again())?;
            }
            Kind::EndStream => self.run(END_STREAM).await,
            Kind::FailOver | Kind::FailOverWithLoss => self.fail_over(step, stage, relays).await?,
            Kind::DropSlot => self.run(DROP_SLOT).await,
            Kind::NarrowPublication => self.around(NARROW, WIDEN, step, relays).await?,
            Kind::DropPublication => {
                self.around(DROP_PUBLICATION, MAKE_PUBLICATION, step, relays)
                    .await?
            }
            Kind::SwitchSource => block_in_place(|| switch_source(step, relays))?,
            Kind::SmallMessages => {
                topic::limit_messages(&stage.brokers(), SMALL).await?;
                self.last(step, relays).await?;
                topic::limit_messages(&stage.brokers(), USUAL).await?;
                self.retry_parked().await;
            }
            Kind::RecreateTopics => self.recreate_topics(plan, step, stage, relays).await?,
            Kind::AddPartitions => {
                topic::add_partition(&stage.brokers(), plan.partitions + MORE_PARTITIONS).await?
            }
            Kind::RevokeAcls => {
                let denied = rights::denied(which);
                block_in_place(|| rights::revoke(stage.broker(0), &denied))?;
                self.last(step, relays).await?;
                block_in_place(|| rights::restore(stage.broker(0), &denied))?;
            }
            Kind::ExpireProducers => {
                let pause = Pause::begin(&self.url, TABLE).await;
                self.last(step, relays).await?;
                if let Some(pause) = pause {
                    pause.end().await;
                }
            }
            Kind::AbortTransactions => {
                let leader = self.leader().await;
                let frozen = relays.signal(leader, which, "STOP")?;
                sleep(step.lasts).await;
                relays.signal(frozen, which, "CONT")?;
            }
            Kind::HangReplication => self.hang_replication(step, relays).await?,
            Kind::ReadOnly => self.around(READ_ONLY, READ_WRITE, step, relays).await?,
            Kind::KillTwoBrokers => {
                block_in_place(|| stage.kill_two_brokers(which))?;
                self.last(step, relays).await?;
                block_in_place(|| stage.start_brokers())?;
            }
            Kind::ClockSteps => {
                relays.step_clock(which)?;
                self.last(step, relays).await?;
                relays.restore_clock()?;
            }
        }
        Ok(())
    }

    /// Deletes the topics once everything in them has been read, lets the writers continue, and creates the topics again.
    async fn recreate_topics(
        &mut self,
        plan: &Plan,
        step: &Step,
        stage: &mut Stage,
        relays: &mut Relays,
    ) -> Result<(), Failure> {
        let Some(pause) = Pause::begin(&self.url, TABLE).await else {
            return Ok(());
        };
        let Some(read) = pause::read_all(&self.url, &stage.brokers(), &self.archive).await? else {
            pause.end().await;
            return Ok(());
        };
        self.archive.extend(read);
        topic::delete(&stage.brokers()).await?;
        pause.end().await;
        self.last(step, relays).await?;
        topic::create(&stage.brokers(), plan).await
    }

    /// Stops the walsender's process for a while.
    async fn hang_replication(&mut self, step: &Step, relays: &mut Relays) -> Result<(), Failure> {
        let walsender = sqlx::query_scalar::<_, i32>(WALSENDER).fetch_optional(&self.pool);
        let walsender = timeout(ANSWER_LIMIT, walsender)
            .await
            .ok()
            .and_then(Result::ok)
            .flatten();
        let Some(pid) = walsender.and_then(|pid| u32::try_from(pid).ok()) else {
            return Ok(());
        };
        send("STOP", pid)?;
        let lasted = self.last(step, relays).await;
        send("CONT", pid)?;
        lasted
    }

    /// Lets a fault last, and kills the leader somewhere in it if the step says so.
    async fn last(&mut self, step: &Step, relays: &mut Relays) -> Result<(), Failure> {
        let before = step.before_kill();
        sleep(before).await;
        if step.kill_meanwhile {
            self.kill(step, relays).await?;
        }
        sleep(step.lasts - before).await;
        Ok(())
    }

    async fn kill(&mut self, step: &Step, relays: &mut Relays) -> Result<(), Failure> {
        // One in five hits whoever it hits: a relay that is starting, or standing by.
        let leader = if step.which.is_multiple_of(5) {
            None
        } else {
            self.leader().await
        };
        self.kills += usize::from(block_in_place(|| relays.kill(leader, step.which))?);
        Ok(())
    }

    /// The leader's process id, as it has written it down; `None` while Postgres does not answer.
    async fn leader(&self) -> Option<u32> {
        let leader = sqlx::query_scalar::<_, Option<String>>(
            "select leader from tidings.relay where name = $1",
        )
        .bind(NAME);
        let leader = timeout(ANSWER_LIMIT, leader.fetch_optional(&self.pool))
            .await
            .ok()?
            .ok()???;
        leader.rsplit(':').next()?.parse().ok()
    }

    /// Runs statements one by one in one session. Those that fail have nothing to break, for example no slot yet.
    async fn run(&self, statements: &str) {
        let Ok(mut session) = self.pool.acquire().await else {
            return;
        };
        for statement in statements.split(';') {
            let statement = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()));
            let _ = timeout(ANSWER_LIMIT, statement.execute(&mut *session)).await;
        }
    }

    async fn around(
        &mut self,
        before: &str,
        after: &str,
        step: &Step,
        relays: &mut Relays,
    ) -> Result<(), Failure> {
        self.run(before).await;
        self.last(step, relays).await?;
        self.run(after).await;
        Ok(())
    }

    async fn fail_over(
        &mut self,
        step: &Step,
        stage: &mut Stage,
        relays: &mut Relays,
    ) -> Result<(), Failure> {
        if step.kind == Kind::FailOverWithLoss {
            let standby = stage.standby.as_mut().ok_or("there is no standby")?;
            block_in_place(|| standby.hold_back())?;
            self.last(step, relays).await?;
        } else {
            block_in_place(|| stage.prepare_fail_over())?;
        }
        block_in_place(|| stage.fail_over())
    }
}

fn switch_source(step: &Step, relays: &mut Relays) -> Result<(), Failure> {
    relays.set_source(["wal", "poll", "auto"][step.which % 3]);
    relays.stop_all();
    relays.start_all()
}
