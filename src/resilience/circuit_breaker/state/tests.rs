use proptest::prelude::*;

use super::super::policy::FailureRate;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn machine(policy: CircuitBreakerPolicy) -> (Machine, Instant) {
    let now = Instant::now();
    (Machine::new(policy, now), now)
}

/// Makes one call that ends immediately.
fn call(machine: &mut Machine, outcome: Outcome, now: Instant) -> Option<Transition> {
    machine.elapse(now);
    let ticket = machine.admit(now).expect("the circuit admits the call");
    machine.complete(ticket, outcome, now)
}

#[test]
fn five_failures_in_a_row_open_it_for_thirty_seconds_and_two_successes_close_it() {
    let (mut machine, now) = machine(CircuitBreakerPolicy::default());
    for _ in 0..4 {
        assert_eq!(call(&mut machine, Outcome::Failure, now), None);
    }
    let opened = call(&mut machine, Outcome::Failure, now).expect("the circuit opens");
    assert_eq!(
        opened,
        Transition {
            from: CircuitState::Closed,
            to: CircuitState::Open,
            cause: Cause::ConsecutiveFailures(5)
        }
    );
    assert_eq!(
        machine
            .admit(now + 10 * SECOND)
            .expect_err("the circuit is open"),
        20 * SECOND
    );
    let later = now + 30 * SECOND;
    assert_eq!(
        machine.elapse(later).map(|it| it.cause),
        Some(Cause::OpenElapsed)
    );
    assert_eq!(call(&mut machine, Outcome::Success, later), None);
    let closed = call(&mut machine, Outcome::Success, later).expect("the circuit closes");
    assert_eq!(
        (closed.to, closed.cause),
        (CircuitState::Closed, Cause::ProbesSucceeded)
    );
}

#[test]
fn half_of_twenty_calls_open_it_though_no_five_fail_in_a_row() {
    let (mut machine, now) = machine(CircuitBreakerPolicy::default());
    for turn in 0..9 {
        call(&mut machine, Outcome::Success, now + turn * SECOND);
        assert_eq!(
            call(&mut machine, Outcome::Failure, now + turn * SECOND),
            None,
            "{turn}"
        );
    }
    call(&mut machine, Outcome::Success, now + 9 * SECOND);
    let opened = call(&mut machine, Outcome::Failure, now + 9 * SECOND).expect("the circuit opens");
    assert_eq!(
        opened.cause,
        Cause::FailureRate {
            failures: 10,
            calls: 20
        }
    );
}

#[test]
fn an_outcome_from_before_it_opened_changes_nothing() {
    let (mut machine, now) = machine(CircuitBreakerPolicy::default());
    let (early, late) = (
        machine.admit(now).expect("closed"),
        machine.admit(now).expect("closed"),
    );
    for _ in 0..5 {
        call(&mut machine, Outcome::Failure, now);
    }
    assert_eq!(machine.complete(early, Outcome::Success, now), None);
    machine.elapse(now + 30 * SECOND);
    let probe = machine.admit(now + 30 * SECOND).expect("half-open");
    assert_eq!(
        machine.complete(late, Outcome::Failure, now + 31 * SECOND),
        None,
        "the outcome belongs to an earlier phase"
    );
    assert_eq!(machine.state(), CircuitState::HalfOpen);
    assert_eq!(
        machine
            .admit(now + 31 * SECOND)
            .expect_err("a probe is running"),
        Duration::ZERO
    );
    assert_eq!(
        machine
            .complete(probe, Outcome::Failure, now + 32 * SECOND)
            .map(|it| it.to),
        Some(CircuitState::Open)
    );
}

#[test]
fn a_probe_that_is_dropped_makes_room_for_the_next() {
    let (mut machine, now) = machine(CircuitBreakerPolicy {
        consecutive_failures: Some(1),
        ..Default::default()
    });
    call(&mut machine, Outcome::Failure, now);
    let later = now + 30 * SECOND;
    for _ in 0..3 {
        assert_eq!(call(&mut machine, Outcome::Ignored, later), None);
    }
    assert_eq!(machine.state(), CircuitState::HalfOpen);
}

#[test]
fn zeroes_and_endless_times_are_bounded() {
    let rate = FailureRate {
        rate: 0.0,
        window: Duration::ZERO,
        calls_min: 0,
    };
    let policy = CircuitBreakerPolicy {
        consecutive_failures: Some(0),
        failure_rate: Some(rate),
        open: Duration::MAX,
        successes_to_close: 0,
        probes: 0,
    };
    let (mut machine, now) = machine(policy);
    assert_eq!(
        call(&mut machine, Outcome::Success, now),
        None,
        "a success opens nothing"
    );
    assert_eq!(
        call(&mut machine, Outcome::Failure, now).map(|it| it.to),
        Some(CircuitState::Open)
    );
    assert_eq!(
        call(&mut machine, Outcome::Success, now + OPEN_MAX).map(|it| it.to),
        Some(CircuitState::Closed)
    );
}

/// Operation on a circuit.
#[derive(Clone, Debug)]
enum Step {
    Ask,
    /// The running call at this index ends.
    End(usize, Outcome),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![
        3 => Just(Outcome::Success),
        4 => Just(Outcome::Failure),
        1 => Just(Outcome::Ignored),
    ];
    let step = prop_oneof![
        4 => Just(Step::Ask),
        4 => (any::<usize>(), outcome).prop_map(|(at, outcome)| Step::End(at, outcome)),
        1 => (0u64..4_000).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..300)
}

fn policy() -> impl Strategy<Value = CircuitBreakerPolicy> {
    let rate = (0.1..1.0f64, 1u32..8).prop_map(|(rate, calls_min)| FailureRate {
        rate,
        window: 2 * SECOND,
        calls_min,
    });
    (
        proptest::option::of(1u32..5),
        proptest::option::of(rate),
        0u64..3_000,
        1u32..4,
        1u32..4,
    )
        .prop_map(
            |(consecutive_failures, failure_rate, open, successes_to_close, probes)| {
                CircuitBreakerPolicy {
                    consecutive_failures,
                    failure_rate,
                    open: Duration::from_millis(open),
                    successes_to_close,
                    probes,
                }
            },
        )
}

/// Naive model: it keeps the whole history and recomputes the state each time. Times are in ms.
#[derive(Default)]
struct Model {
    /// Beginning and state of each phase.
    phases: Vec<(u64, CircuitState)>,
    /// Phase of each admitted call at its start, and its end: time and outcome.
    calls: Vec<(usize, Option<(u64, Outcome)>)>,
    /// The calls in the order of their ends.
    ended: Vec<usize>,
}

impl Model {
    fn state(&self) -> CircuitState {
        self.phases
            .last()
            .map_or(CircuitState::Closed, |(_, state)| *state)
    }

    fn ask(&mut self, policy: &CircuitBreakerPolicy, now: u64) -> bool {
        let (began, state) = self
            .phases
            .last()
            .copied()
            .unwrap_or((0, CircuitState::Closed));
        if state == CircuitState::Open && now >= began + policy.open.as_millis() as u64 {
            self.phases.push((now, CircuitState::HalfOpen));
        }
        let phase = self.phases.len();
        let probes = self
            .calls
            .iter()
            .filter(|(of, end)| *of == phase && end.is_none())
            .count();
        let passes = match self.state() {
            CircuitState::Closed => true,
            CircuitState::Open => false,
            CircuitState::HalfOpen => probes < policy.probes as usize,
        };
        if passes {
            self.calls.push((phase, None));
        }
        passes
    }

    fn end(&mut self, policy: &CircuitBreakerPolicy, call: usize, outcome: Outcome, now: u64) {
        self.calls[call].1 = Some((now, outcome));
        self.ended.push(call);
        let phase = self.phases.len();
        if self.calls[call].0 != phase {
            return;
        }
        let began = self.phases.last().map_or(0, |(began, _)| *began);
        let of_phase: Vec<(u64, bool)> = self
            .ended
            .iter()
            .map(|call| self.calls[*call])
            .filter_map(|(of, end)| {
                end.filter(|(_, outcome)| of == phase && *outcome != Outcome::Ignored)
            })
            .map(|(at, outcome)| ((at - began) / 200, outcome == Outcome::Failure))
            .collect();
        let next = match self.state() {
            CircuitState::Closed if outcome == Outcome::Failure => {
                let in_a_row = of_phase
                    .iter()
                    .rev()
                    .take_while(|(_, failed)| *failed)
                    .count();
                let within: Vec<_> = of_phase
                    .iter()
                    .filter(|(step, _)| step + 10 > (now - began) / 200)
                    .collect();
                let failures = within.iter().filter(|(_, failed)| *failed).count();
                let by_row = policy
                    .consecutive_failures
                    .is_some_and(|max| in_a_row >= max as usize);
                let by_rate = policy.failure_rate.is_some_and(|rate| {
                    within.len() >= rate.calls_min as usize
                        && failures as f64 >= rate.rate * within.len() as f64
                });
                (by_row || by_rate).then_some(CircuitState::Open)
            }
            CircuitState::HalfOpen if outcome == Outcome::Failure => Some(CircuitState::Open),
            CircuitState::HalfOpen if outcome == Outcome::Success => (of_phase.len()
                >= policy.successes_to_close as usize)
                .then_some(CircuitState::Closed),
            _ => None,
        };
        self.phases.extend(next.map(|state| (now, state)));
    }
}

proptest! {
    #[test]
    fn it_does_what_a_model_that_remembers_everything_does(policy in policy(), steps in steps()) {
        let began = Instant::now();
        let (mut machine, mut model) = (Machine::new(policy, began), Model::default());
        let mut under_way: Vec<(usize, Ticket)> = Vec::new();
        let mut elapsed = 0;
        for step in steps {
            let now = began + Duration::from_millis(elapsed);
            match step {
                Step::Pass(millis) => elapsed += millis,
                Step::Ask => {
                    machine.elapse(now);
                    let (admitted, expected) = (machine.admit(now), model.ask(&policy, elapsed));
                    prop_assert_eq!(admitted.is_ok(), expected);
                    under_way.extend(admitted.ok().map(|ticket| (model.calls.len() - 1, ticket)));
                }
                Step::End(_, _) if under_way.is_empty() => {}
                Step::End(at, outcome) => {
                    let (call, ticket) = under_way.swap_remove(at % under_way.len());
                    let (before, changed) =
                        (machine.state(), machine.complete(ticket, outcome, now));
                    model.end(&policy, call, outcome, elapsed);
                    prop_assert_eq!(changed.is_some(), before != machine.state());
                }
            }
            prop_assert_eq!(machine.state(), model.state());
        }
    }

    #[test]
    fn whatever_happened_it_closes_once_calls_succeed_again(policy in policy(), steps in steps()) {
        let mut now = Instant::now();
        let mut machine = Machine::new(policy, now);
        let mut under_way = Vec::new();
        for step in steps {
            match step {
                Step::Pass(millis) => now += Duration::from_millis(millis),
                Step::Ask => {
                    machine.elapse(now);
                    under_way.extend(machine.admit(now));
                }
                Step::End(at, outcome) if !under_way.is_empty() => {
                    let ticket = under_way.swap_remove(at % under_way.len());
                    machine.complete(ticket, outcome, now);
                }
                Step::End(..) => {}
            }
        }
        for ticket in under_way {
            machine.complete(ticket, Outcome::Ignored, now);
        }
        now += policy.open;
        for _ in 0..policy.successes_to_close {
            call(&mut machine, Outcome::Success, now);
        }
        prop_assert_eq!(machine.state(), CircuitState::Closed);
    }
}
