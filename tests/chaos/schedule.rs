//! Sequence of faults, determined by the seed alone.

use std::time::Duration;

use super::faults::{self, Urn, kinds};
use super::plan::Plan;
use super::random::Random;

kinds! {
    Kill, "kill", 8, "`kill -9` of the leader, or sometimes of any relay, which is started again.";
    Freeze, "freeze", 3, "SIGSTOP of the leader, followed by SIGCONT.";
    Restart, "restart", 3, "SIGTERM of a relay, which drains and is started again.";
    KillBroker, "kill-broker", 3, "`kill -9` of a broker.";
    StopBroker, "stop-broker", 2, "Orderly shutdown of a broker.";
    FreezeBroker, "freeze-broker", 2, "A broker hangs.";
    CutPostgres, "cut-postgres", 4, "Closes every connection of the relays to Postgres.";
    StallPostgres, "stall-postgres", 2, "The connections to Postgres transfer no data.";
    CutKafka, "cut-kafka", 4, "Closes every connection of the relays to a broker.";
    StallKafka, "stall-kafka", 3, "The connections to a broker transfer no data.";
    CrashPostgres, "crash-postgres", 2, "`kill -9` of Postgres, with all its processes.";
    RestartPostgres, "restart-postgres", 1, "Orderly shutdown of Postgres.";
    EndStream, "end-stream", 3, "The server terminates the walsender.";
    FailOver, "fail-over", 1, "The primary is killed. Its standby is promoted \
                               and gets its own standby.";
    FailOverWithLoss, "fail-over-with-loss", 1, "The same, with commits that the standby has not \
        received. A relay that stops and reports the loss is correct.";
    DropSlot, "drop-slot", 1, "The slot is dropped.";
    NarrowPublication, "narrow-publication", 1, "The publication temporarily leaves inserts out.";
    DropPublication, "drop-publication", 1, "The publication is dropped and later created again.";
    SwitchSource, "switch-source", 2, "All relays are restarted with another `--source`.";
    SmallMessages, "small-messages", 1, "The topics temporarily refuse records above a small size.";
    RecreateTopics, "recreate-topics", 1, "Both topics are deleted once they have been read, \
        and later created again.";
    AddPartitions, "add-partitions", 1, "Both topics get one more partition.";
    RevokeAcls, "revoke-acls", 2, "The relays temporarily lose the right to write to the topics or \
                                   to use their transactional ids.";
    ExpireProducers, "expire-producers", 1, "No event is published until the broker has removed \
        idle transactional ids.";
    AbortTransactions, "abort-transactions", 2, "The leader is suspended for longer than the \
        broker's transaction timeout.";
    HangReplication, "hang-replication", 2, "The walsender hangs. Other sessions continue.";
    ReadOnly, "read-only", 1, "The sessions of the database are terminated, \
                               and new ones are temporarily read-only.";
    KillTwoBrokers, "kill-two-brokers", 1, "Two of three brokers are killed, \
        so fewer than `min.insync.replicas` remain.";
    ClockSteps, "clock-steps", 2, "The clock of the relays steps by an hour or two days, \
                                   forwards or backwards.";
}

impl Kind {
    /// Faults that every relay must survive without an operator.
    pub(crate) const SURVIVABLE: &[Self] = &[
        Self::Kill,
        Self::Freeze,
        Self::Restart,
        Self::KillBroker,
        Self::StopBroker,
        Self::FreezeBroker,
        Self::CutPostgres,
        Self::StallPostgres,
        Self::CutKafka,
        Self::StallKafka,
        Self::CrashPostgres,
        Self::RestartPostgres,
        Self::EndStream,
        Self::DropSlot,
        Self::SwitchSource,
        Self::RecreateTopics,
        Self::AddPartitions,
        Self::RevokeAcls,
        Self::ExpireProducers,
        Self::AbortTransactions,
        Self::HangReplication,
        Self::ReadOnly,
    ];

    /// Returns whether the fault can be injected with this number of brokers. With Kafka's
    /// authorizer, anonymous controllers cannot form a quorum, so ACLs need a single broker.
    pub(crate) fn suits(self, brokers: usize) -> bool {
        match self {
            Self::KillTwoBrokers => brokers == 3,
            Self::RevokeAcls => brokers == 1,
            _ => true,
        }
    }

    /// The minimum duration of a fault that needs some time to take effect.
    fn lasts_at_least(self) -> Duration {
        match self {
            // Longer than EXPIRY and MAX_TRANSACTION in `stage`.
            Self::ExpireProducers | Self::AbortTransactions => Duration::from_secs(11),
            _ => Duration::ZERO,
        }
    }

    /// Returns whether the fault has a duration, during which a relay can be killed.
    fn lasts(self) -> bool {
        !matches!(
            self,
            Self::Kill
                | Self::Restart
                | Self::CutPostgres
                | Self::CutKafka
                | Self::EndStream
                | Self::FailOver
                | Self::DropSlot
                | Self::SwitchSource
                | Self::AddPartitions
        )
    }
}

/// One step of the nemesis.
pub(crate) type Step = faults::Step<Kind>;

/// An infinite sequence of steps.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    random: Random,
    urn: Urn<Kind>,
    /// Allows faults that outlast the lease. The leader then loses its lease and may resume beside
    /// its successor. The documentation of at-least-once delivery states that this can reorder
    /// events. A broker that processes requests of a killed leader late has the same effect.
    zombies: bool,
}

impl Schedule {
    pub(crate) fn new(plan: &Plan) -> Self {
        let zombies = !plan.repeats();
        let kinds = plan
            .faults
            .iter()
            .filter(|kind| zombies || **kind != Kind::AbortTransactions);
        Self {
            random: Random::new(plan.seed, 0),
            urn: Urn::new(kinds.copied()),
            zombies,
        }
    }

    /// Returns whether the fault delays requests of a leader that is killed meanwhile, or stops the
    /// leader itself. A stalled proxy is not among these, because its pending data is dropped when
    /// the leader is killed.
    fn holds_requests(kind: Kind) -> bool {
        matches!(
            kind,
            Kind::FreezeBroker | Kind::Freeze | Kind::AbortTransactions
        )
    }
}

// === impl Iterator ===

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let random = &mut self.random;
        let kind = self.urn.draw(random);
        // Some faults outlast a lease (10 s), a session timeout or a broker's session.
        let lasts = if self.zombies && random.one_in(4) {
            random.millis(11_000, 15_000)
        } else {
            random.millis(100, 4_000)
        };
        let lasts = lasts.max(kind.lasts_at_least());
        let (after, which) = (random.millis(50, 2_500), random.below(1_000) as usize);
        let kill_meanwhile =
            !random.one_in(3) && kind.lasts() && (self.zombies || !Self::holds_requests(kind));
        Some(Step {
            after,
            kind,
            lasts: if kind.lasts() { lasts } else { Duration::ZERO },
            which,
            kill_meanwhile,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(words: &str) -> Plan {
        Plan::parse(words.split(' ')).expect("good words")
    }

    #[test]
    fn a_seed_gives_the_same_steps_again() {
        let steps = |seed| {
            Schedule::new(&plan(&format!("--seed {seed}")))
                .take(50)
                .collect::<Vec<_>>()
        };
        assert_eq!(steps(1), steps(1));
        assert_ne!(steps(1), steps(2));
    }

    #[test]
    fn every_fault_that_is_asked_for_comes_and_no_other() {
        let mut seen: Vec<_> = Schedule::new(&plan("--seed 3"))
            .take(1_000)
            .map(|step| step.kind)
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, Kind::SURVIVABLE);
        assert!(
            Schedule::new(&plan("--faults cut-kafka"))
                .take(100)
                .all(|step| step.kind == Kind::CutKafka)
        );
    }

    #[test]
    fn only_exactly_once_is_asked_to_survive_a_leader_that_wakes_up_after_its_lease() {
        let longest = |delivery| {
            let steps =
                Schedule::new(&plan(&format!("--seed 5 --delivery {delivery}"))).take(1_000);
            // This fault only pauses the writers; no leader resumes after its lease.
            let steps = steps.filter(|step| step.kind != Kind::ExpireProducers);
            steps.map(|step| step.lasts).max().expect("steps")
        };
        assert!(longest("at-least-once") < Duration::from_secs(5));
        assert!(longest("exactly-once") > Duration::from_secs(10));
    }
}
