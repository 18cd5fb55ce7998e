//! Sequence of faults of members, their servers and their topics, determined by the seed alone.

use std::time::Duration;

use super::super::faults::{self, Fault as _, Urn, kinds};
use super::super::random::Random;
use super::plan::Plan;

kinds! {
    Kill, "kill", 16, "`kill -9` of a member, which is started again.";
    Restart, "restart", 6, "SIGTERM of a member, which drains and is started again.";
    Freeze, "freeze", 3, "SIGSTOP of a member for longer than its session timeout, \
                          followed by SIGCONT.";
    Deploy, "deploy", 4, "Rolling deployment of the next release: old and new \
                          members run side by side.";
    ReadOnly, "read-only", 4, "The sessions of the database are terminated, \
                               and new ones are temporarily read-only.";
    EndSessions, "end-sessions", 8, "The server terminates all sessions of the members.";
    RestartPostgres, "restart-postgres", 2, "Orderly restart of Postgres.";
    CrashPostgres, "crash-postgres", 2, "`kill -9` of Postgres, with all its processes.";
    KillBroker, "kill-broker", 3, "`kill -9` of the broker, which is started again.";
    AddPartitions, "add-partitions", 1, "Each subscribed topic gets one more partition.";
    RecreateLetters, "recreate-letters", 1, "Topics of dead letters are deleted once all events \
        are handled and all letters are read. In half of the cases, retry topics are deleted too.";
    RecreateRetries, "recreate-retries", 2, "Retry topics are deleted once all their events are \
        handled, while members run.";
    RecreateTopic, "recreate-topic", 1, "A subscribed topic is deleted and created again \
        once all its events are handled. In half of the cases, all members are stopped.";
    Hostile, "hostile", 8, "Records that no publisher should write, in subscribed topics.";
}

impl Kind {
    /// Returns every kind of fault.
    pub(crate) fn all() -> Vec<Self> {
        Self::TABLE.iter().map(|(kind, ..)| *kind).collect()
    }

    /// The minimum duration of a fault that needs some time to take effect.
    fn lasts_at_least(self) -> Duration {
        match self {
            // The session timeout of a member is 7 s.
            Self::Freeze => Duration::from_secs(9),
            Self::Deploy => Duration::from_secs(2),
            _ => Duration::ZERO,
        }
    }

    /// Returns whether the fault has a duration, during which a member can be killed.
    fn lasts(self) -> bool {
        matches!(
            self,
            Self::Freeze
                | Self::Deploy
                | Self::ReadOnly
                | Self::RestartPostgres
                | Self::CrashPostgres
                | Self::KillBroker
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
}

impl Schedule {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            random: Random::new(plan.seed, 0),
            urn: Urn::new(plan.faults.iter().copied()),
        }
    }
}

// === impl Iterator ===

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let random = &mut self.random;
        let kind = self.urn.draw(random);
        // Some faults last longer than the limits of a session or a statement.
        let lasts = if random.one_in(10) {
            random.millis(8_000, 13_000)
        } else {
            random.millis(100, 2_000)
        };
        let lasts = lasts.max(kind.lasts_at_least());
        // A few pauses are long enough for a group to become stable.
        let after = if random.one_in(12) {
            random.millis(8_000, 10_000)
        } else {
            random.millis(50, 900)
        };
        let which = random.below(1_000) as usize;
        let kill_meanwhile = random.one_in(3) && kind.lasts();
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
    fn every_fault_of_the_plan_comes_and_no_other() {
        let mut seen: Vec<_> = Schedule::new(&plan("--seed 3"))
            .take(200)
            .map(|step| step.kind)
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, Kind::all());
        assert!(
            Schedule::new(&plan("--faults kill"))
                .take(100)
                .all(|step| step.kind == Kind::Kill)
        );
    }

    #[test]
    fn a_member_is_frozen_for_longer_than_its_session() {
        let steps = Schedule::new(&plan("--seed 5 --faults freeze")).take(200);
        assert!(steps.map(|step| step.lasts).min() > Some(Duration::from_secs(7)));
    }
}
