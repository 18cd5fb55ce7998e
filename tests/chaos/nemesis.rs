//! Injection of the scheduled faults. Each fault is over when its step returns.

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

/// A running server responds within this time. A statement to a stopped server may fail.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// The maximum number of steps for each kill that a plan requires, so that a history ends even if
/// kills miss.
const STEPS_PER_KILL_MAX: usize = 60;

/// The record size limit during the fault, and Kafka's default.
const SMALL: u32 = 100_000;
const USUAL: u32 = 1_048_588;

const END_STREAM: &str = "select pg_terminate_backend(active_pid) from pg_replication_slots \
                          where active_pid is not null";
const DROP_SLOT: &str = "select pg_terminate_backend(active_pid, 2000) from pg_replication_slots \
                         where slot_name like 'tidings_chaos%';
                         select pg_drop_replication_slot(slot_name) from pg_replication_slots \
                             where slot_name like 'tidings_chaos%'";
/// These statements use the publication name that the relay has recorded.
const NARROW: &str = "do $$ begin execute (select format('alter publication %I \
                      set (publish = ''update'')', publication)
                      from tidings.relay where name = 'chaos'); end $$";
const WIDEN: &str = "do $$ begin execute (select format('alter publication %I \
                     set (publish = ''insert'')', publication)
                     from tidings.relay where name = 'chaos'); end $$";
const DROP_PUBLICATION: &str =
    "do $$ begin execute (select format('drop publication %I', publication)
                                from tidings.relay where name = 'chaos'); end $$";
const MAKE_PUBLICATION: &str = "do $$ begin execute (select
                                format('create publication %I for table tidings.outbox \
                                    with (publish = ''insert'')', publication)
                                from tidings.relay where name = 'chaos'); end $$";

/// The action of an operator for events that were parked because a topic refused them. Events that
/// wait for a missing topic are released without an operator.
const RETRY: &str = "update tidings.parked set action = 'retry' where reason is not null \
                     and action is null and waits_for is null";

/// Terminates all existing sessions. New sessions are read-only.
pub(crate) const READ_ONLY: &str = "set default_transaction_read_only = off;
    alter database postgres set default_transaction_read_only = on;
    select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = 'postgres' \
        and pid <> pg_backend_pid()";

/// Makes new sessions writable again. Existing read-only sessions stay read-only.
pub(crate) const READ_WRITE: &str = "set default_transaction_read_only = off;
    alter database postgres reset default_transaction_read_only";

const WALSENDER: &str =
    "select active_pid from pg_replication_slots where active_pid is not null limit 1";

/// The table in which each transaction of a writer changes a row.
const TABLE: &str = "account";

/// The maximum number of partitions that are added to a topic.
const MORE_PARTITIONS: i32 = 4;

/// The component that injects faults.
pub(crate) struct Nemesis {
    pool: PgPool,
    url: String,
    /// The records of topics that were deleted later.
    archive: Vec<Record>,
    counts: BTreeMap<Kind, usize>,
    kills: usize,
}

/// Creates the pool of a nemesis, which waits for up to `limit` for a connection.
///
/// # Errors
///
/// Returns an error if the URL is invalid.
pub(crate) fn pool(url: &str, limit: Duration) -> Result<PgPool, Failure> {
    let options: PgConnectOptions = url.parse()?;
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .acquire_timeout(limit);
    Ok(pool.connect_lazy_with(options))
}

impl Nemesis {
    /// # Errors
    ///
    /// Returns an error if the URL is invalid.
    pub(crate) fn new(plan: &Plan, url: &str) -> Result<Self, Failure> {
        Ok(Self {
            pool: pool(url, ANSWER_LIMIT)?,
            url: url.to_owned(),
            archive: Vec::new(),
            counts: plan.faults.iter().map(|kind| (*kind, 0)).collect(),
            kills: 0,
        })
    }

    /// Injects one fault after the other until the plan's length is reached or a relay has stopped
    /// permanently.
    ///
    /// # Errors
    ///
    /// Returns an error if a server of the test cannot be controlled.
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

    /// Retries parked events once the cause of their failure has been removed.
    pub(crate) async fn retry_parked(&self) {
        self.run(RETRY).await;
    }

    /// Takes the records of deleted topics, in the order of their partitions.
    pub(crate) fn take_archive(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.archive)
    }

    /// Returns the number of injections of each fault.
    pub(crate) fn counts(&self) -> BTreeMap<Kind, usize> {
        self.counts.clone()
    }

    /// Returns the number of relays that were killed with `kill -9`, including kills during other
    /// faults.
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
                    // Drops the data that the killed leader had sent. If it arrived after the data
                    // of the successor, only exactly-once delivery would keep the order.
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

    /// Deletes the topics once all their records have been read, lets the writers continue, and
    /// creates the topics again.
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

    /// Suspends the walsender process for the duration of the step.
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

    /// Waits for the duration of a fault, and kills a relay during it if the step includes a kill.
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
        // One kill in five does not target the leader. It may hit a relay that is starting or on
        // standby.
        let leader = if step.which.is_multiple_of(5) {
            None
        } else {
            self.leader().await
        };
        self.kills += usize::from(block_in_place(|| relays.kill(leader, step.which))?);
        Ok(())
    }

    /// Returns the process id that the leader has recorded. Returns `None` while Postgres does not
    /// respond or no leader is recorded.
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

    /// Runs the statements one by one in one session. Ignores errors, because the object of the
    /// fault may not exist, for example a slot before it is created.
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
            let standby = stage.standby.as_mut().ok_or("the stage has no standby")?;
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
