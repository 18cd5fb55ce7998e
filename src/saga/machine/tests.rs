//! Tests of the machine against a naive model, and with messages that arrive late, twice or not at
//! all.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::saga::progress::Cause;

const OK: [&str; 6] = ["ok0", "ok1", "ok2", "ok3", "ok4", "ok5"];
const NO: [&str; 6] = ["no0", "no1", "no2", "no3", "no4", "no5"];
const UNDONE: [&str; 6] = [
    "undone0", "undone1", "undone2", "undone3", "undone4", "undone5",
];
const NOT_UNDONE: [&str; 6] = ["kept0", "kept1", "kept2", "kept3", "kept4", "kept5"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undo {
    None,
    Told,
    Asked,
}

fn step(at: usize, undo: Undo, attempts: u32, pivot: bool) -> StepShape {
    StepShape {
        name: at.to_string(),
        forward: ActionShape::Remote(vec![OK[at], NO[at]]),
        compensation: match undo {
            Undo::None => ActionShape::Nothing,
            Undo::Told => ActionShape::Remote(Vec::new()),
            Undo::Asked => ActionShape::Remote(vec![UNDONE[at], NOT_UNDONE[at]]),
        },
        timeout: Some(Duration::from_secs(10)),
        retry: Some(Retry::exponential(
            attempts,
            Duration::from_secs(1)..Duration::from_secs(8),
        )),
        pivot,
        retired: false,
    }
}

fn undo() -> impl Strategy<Value = Undo> {
    prop_oneof![Just(Undo::None), Just(Undo::Told), Just(Undo::Asked)]
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).expect("a time")
}

/// Run of a shape, with all commands sent: `(command, step, back)`.
struct Run<'s> {
    shape: &'s Shape,
    progress: Progress,
    now: DateTime<Utc>,
    sent: Vec<(Uuid, usize, bool)>,
}

impl<'s> Run<'s> {
    fn start(shape: &'s Shape) -> Self {
        let mut run = Self {
            shape,
            progress: shape.plan(),
            now: at(0),
            sent: Vec::new(),
        };
        run.feed(Input::Start);
        run
    }

    fn feed(&mut self, input: Input) {
        let mut next = self.shape.next(&mut self.progress, input, self.now);
        loop {
            next = match next {
                Next::Wait | Next::Ended => return,
                Next::Call { .. } => {
                    self.shape
                        .next(&mut self.progress, Input::Called(Ok(())), self.now)
                }
                Next::Send { step, back } => {
                    let id = Uuid::from_u128(self.sent.len() as u128 + 1);
                    self.sent.push((id, step.parse().expect("a number"), back));
                    self.shape
                        .next(&mut self.progress, Input::Sent(id), self.now)
                }
            };
        }
    }

    /// Delivers a reply. Returns `true` if it was awaited.
    fn reply(&mut self, event_type: &str, cause: Option<Uuid>) -> bool {
        let awaited = self.shape.awaits(&self.progress, event_type, cause);
        if awaited {
            let refuses = event_type.starts_with("no") || event_type.starts_with("kept");
            self.feed(Input::Reply(refuses.then(|| "refused".into())));
        }
        awaited
    }

    /// Advances the time until the saga is due. Returns `false` if nothing is due.
    fn wait(&mut self) -> bool {
        let Some(due) = self.shape.due_at(&self.progress, self.now) else {
            return false;
        };
        self.now = self.now.max(due);
        self.feed(Input::Due);
        true
    }
}

/// The services: the effect of each step, and the commands in transit to it, in order.
struct Services {
    applied: Vec<bool>,
    on_the_way: Vec<VecDeque<(Uuid, bool)>>,
    delivered: usize,
    replies: Vec<(&'static str, Uuid)>,
}

impl Services {
    fn collect(&mut self, run: &Run<'_>) {
        for (id, step, back) in &run.sent[self.delivered..] {
            self.on_the_way[*step].push_back((*id, *back));
        }
        self.delivered = run.sent.len();
    }

    /// Lets a service handle its next command and accept or refuse it. A refusal has no effect.
    fn handle(&mut self, step: usize, agrees: bool, undo: Undo) -> bool {
        let Some((id, back)) = self.on_the_way[step].pop_front() else {
            return false;
        };
        if agrees || (back && undo == Undo::Told) {
            self.applied[step] = !back;
        }
        let reply = match (back, agrees) {
            (false, true) => OK[step],
            (false, false) => NO[step],
            (true, true) => UNDONE[step],
            (true, false) => NOT_UNDONE[step],
        };
        self.replies.push((reply, id));
        true
    }
}

#[derive(Clone, Debug)]
enum Happening {
    Handle { step: usize, agrees: bool },
    Deliver { at: usize, keep: bool },
    Wait,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0..6usize, prop::bool::weighted(0.8))
            .prop_map(|(step, agrees)| Happening::Handle { step, agrees }),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(at, keep)| Happening::Deliver { at, keep }),
        1 => Just(Happening::Wait),
    ]
}

/// Asserts that all services have their effect, that none has, or that the saga reports the steps
/// that are not undone.
fn assert_all_or_nothing(
    run: &Run<'_>,
    services: &Services,
    steps: &[(Undo, u32)],
) -> Result<(), TestCaseError> {
    let progress = &run.progress;
    let undoable = |step: usize| steps[step].0 != Undo::None;
    match progress.status {
        SagaStatus::Completed => prop_assert!(
            services.applied.iter().all(|applied| *applied),
            "all services have their effect"
        ),
        SagaStatus::Compensated => {
            let left: Vec<_> = (0..steps.len())
                .filter(|step| services.applied[*step] && undoable(*step))
                .collect();
            prop_assert!(left.is_empty(), "done and not undone: {left:?}");
        }
        SagaStatus::Failed if progress.pivoted => prop_assert!(progress.failure.is_some()),
        SagaStatus::Failed => {
            let told: Vec<usize> = progress
                .failed_compensations
                .iter()
                .map(|failed| failed.step.parse().expect("a number"))
                .collect();
            prop_assert!(!told.is_empty());
            prop_assert!(
                (0..steps.len())
                    .all(|step| !services.applied[step] || !undoable(step) || told.contains(&step))
            );
        }
        other => prop_assert!(false, "the saga has not ended: {other:?}"),
    }
    // Forward in the planned order, compensation in reverse order, and no compensation after
    // the pivot.
    let first = |back: bool| {
        let mut steps: Vec<usize> = run
            .sent
            .iter()
            .filter(|sent| sent.2 == back)
            .map(|sent| sent.1)
            .collect();
        steps.dedup();
        steps
    };
    prop_assert!(first(false).is_sorted());
    prop_assert!(first(true).iter().rev().is_sorted());
    prop_assert!(!progress.pivoted || first(true).is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// If messages are late, temporarily lost, repeated or reordered, all services end up with
    /// their effect or none does. A saga that cannot ensure this reports the steps that are not
    /// undone.
    #[test]
    fn all_is_done_or_all_is_undone_or_it_is_said_what_is_not(
        steps in prop::collection::vec((undo(), 1..3u32), 1..6),
        pivot in prop::option::of(0..6usize),
        within in prop::option::of(1..60u64),
        happenings in prop::collection::vec(happening(), 0..60),
        end_agrees in any::<bool>(),
    ) {
        let shape = Shape {
            steps: steps
                .iter()
                .enumerate()
                .map(|(at, (undo, attempts))| step(at, *undo, *attempts, pivot == Some(at)))
                .collect(),
            within: within.map(Duration::from_secs),
        };
        let count = steps.len();
        let mut run = Run::start(&shape);
        let mut services = Services {
            applied: vec![false; count],
            on_the_way: vec![VecDeque::new(); count],
            delivered: 0,
            replies: Vec::new(),
        };
        for happening in happenings {
            let (ended, before) = (run.progress.status.is_end(), run.progress.clone());
            services.collect(&run);
            match happening {
                Happening::Handle { step, agrees } => {
                    services.handle(step % count, agrees, steps[step % count].0);
                }
                Happening::Deliver { at, keep } if !services.replies.is_empty() => {
                    let at = at % services.replies.len();
                    let (reply, cause) = if keep {
                        services.replies[at]
                    } else {
                        services.replies.swap_remove(at)
                    };
                    run.reply(reply, Some(cause));
                }
                Happening::Deliver { .. } => {}
                Happening::Wait => {
                    run.wait();
                }
            }
            prop_assert!(
                !ended || run.progress == before,
                "an ended saga does not change"
            );
        }
        // From here on no message is lost, so the saga must end.
        for _ in 0..10_000 {
            services.collect(&run);
            if (0..count).any(|step| services.handle(step, end_agrees, steps[step].0)) {
                continue;
            }
            if let Some((reply, cause)) = services.replies.pop() {
                run.reply(reply, Some(cause));
                continue;
            }
            if !run.wait() {
                break;
            }
        }
        assert_all_or_nothing(&run, &services, &steps)?;
    }

    /// With replies in any order and number, only the reply that a naive model waits for has an
    /// effect.
    #[test]
    fn late_repeated_and_overtaking_replies_change_nothing(
        undos in prop::collection::vec(undo(), 1..6),
        replies in prop::collection::vec(
            (0..6usize, 0..3usize, any::<bool>(), any::<usize>()),
            0..60,
        ),
    ) {
        let shape = Shape {
            steps: undos
                .iter()
                .enumerate()
                .map(|(at, undo)| step(at, *undo, 1, false))
                .collect(),
            within: None,
        };
        let mut run = Run::start(&shape);
        // The model: forward until a refusal, then the steps left to undo, the last one first.
        let mut forward = Some(0);
        let mut to_undo: Vec<usize> = Vec::new();
        for (of, what, foreign, cause) in replies {
            let of = of % undos.len();
            let reply = [OK[of], NO[of], UNDONE[of]][what];
            // The cause is a command of the same step, of any step, or unknown.
            let cause = foreign.then(|| run.sent[cause % run.sent.len()]);
            let own = |step: usize, back: bool| {
                cause.is_none_or(|(_, of, was_back)| of == step && was_back == back)
            };
            let awaited = match forward {
                Some(step) => of == step && what < 2 && own(step, false),
                None => to_undo.last() == Some(&of) && what == 2 && own(of, true),
            };
            prop_assert_eq!(run.reply(reply, cause.map(|cause| cause.0)), awaited);
            match (forward, awaited, what) {
                (Some(step), true, 0) => forward = Some(step + 1),
                (Some(step), true, _) => {
                    forward = None;
                    to_undo = (0..step)
                        .filter(|step| undos[*step] == Undo::Asked)
                        .collect();
                }
                (None, true, _) => drop(to_undo.pop()),
                _ => {}
            }
            let expected = match forward {
                Some(step) if step == undos.len() => SagaStatus::Completed,
                Some(_) => SagaStatus::Running,
                None if to_undo.is_empty() => SagaStatus::Compensated,
                None => SagaStatus::Compensating,
            };
            prop_assert_eq!(run.progress.status, expected);
            if expected == SagaStatus::Completed || expected == SagaStatus::Compensated {
                break;
            }
        }
    }
}

fn shape(steps: Vec<StepShape>) -> Shape {
    Shape {
        steps,
        within: None,
    }
}

#[test]
fn a_reply_to_an_earlier_step_is_not_taken_for_one_of_the_same_type() {
    let mut second = step(1, Undo::None, 1, false);
    second.forward = ActionShape::Remote(vec![OK[0], NO[0]]);
    let shape = shape(vec![step(0, Undo::None, 3, false), second]);
    let mut run = Run::start(&shape);
    // Without a reply in time, the command is sent again. Both commands are answered.
    run.wait();
    run.wait();
    let [(first, ..), (second, ..)] = run.sent[..] else {
        panic!("sent twice")
    };
    assert!(run.reply(OK[0], Some(first)));
    assert!(
        !run.reply(OK[0], Some(second)),
        "it replies to the previous step"
    );
    let (third, ..) = run.sent[2];
    assert!(run.reply(OK[0], Some(third)));
    assert_eq!(run.progress.status, SagaStatus::Completed);
}

#[test]
fn a_step_that_does_not_answer_is_undone_too_and_one_that_refuses_is_not() {
    let shape = shape(vec![
        step(0, Undo::Told, 1, false),
        step(1, Undo::Told, 1, false),
    ]);
    let mut silent = Run::start(&shape);
    silent.reply(OK[0], None);
    silent.wait();
    assert_eq!(
        (silent.progress.status, silent.progress.undone),
        (
            SagaStatus::Compensated,
            vec!["1".to_owned(), "0".to_owned()]
        )
    );
    let mut refused = Run::start(&shape);
    refused.reply(OK[0], None);
    refused.reply(NO[1], None);
    assert_eq!(
        (refused.progress.status, refused.progress.undone),
        (SagaStatus::Compensated, vec!["0".to_owned()])
    );
}

#[test]
fn behind_the_pivot_a_refusal_is_tried_again_and_then_failed_and_a_person_can_let_it_go_on() {
    let shape = shape(vec![
        step(0, Undo::Told, 1, true),
        step(1, Undo::Told, 2, false),
    ]);
    let mut run = Run::start(&shape);
    run.reply(OK[0], None);
    run.reply(NO[1], None);
    assert_eq!(
        run.progress.status,
        SagaStatus::Running,
        "another attempt is left"
    );
    run.wait();
    run.reply(NO[1], None);
    assert_eq!(run.progress.status, SagaStatus::Failed);
    assert_eq!(
        run.progress.failure.as_ref().map(|failure| &*failure.step),
        Some("1")
    );
    run.feed(Input::Abort);
    assert_eq!(
        run.progress.status,
        SagaStatus::Failed,
        "nothing is undone after the pivot"
    );
    run.feed(Input::Retry);
    run.reply(OK[1], None);
    assert_eq!(
        (run.progress.status, run.progress.failure),
        (SagaStatus::Completed, None)
    );
}

#[test]
fn a_failed_compensation_is_recorded_the_others_run_and_a_person_can_have_it_tried_again() {
    let shape = shape(vec![
        step(0, Undo::Told, 1, false),
        step(1, Undo::Asked, 2, false),
        step(2, Undo::None, 1, false),
    ]);
    let mut run = Run::start(&shape);
    run.reply(OK[0], None);
    run.reply(OK[1], None);
    run.reply(NO[2], None);
    run.reply(NOT_UNDONE[1], None);
    run.wait();
    run.reply(NOT_UNDONE[1], None);
    assert_eq!(
        (run.progress.status, &run.progress.undone[..]),
        (SagaStatus::Failed, &["0".to_owned()][..])
    );
    assert_eq!(run.progress.failed_compensations.len(), 1);
    run.feed(Input::Retry);
    run.reply(UNDONE[1], None);
    assert_eq!(
        (run.progress.status, run.progress.failed_compensations.len()),
        (SagaStatus::Compensated, 0)
    );
}

#[test]
fn the_whole_sagas_time_ends_before_the_pivot_only() {
    let timed = |pivot| Shape {
        steps: vec![step(0, Undo::Told, 1, pivot), step(1, Undo::Told, 9, false)],
        within: Some(Duration::from_secs(15)),
    };
    let (before, behind) = (timed(false), timed(true));
    let mut run = Run::start(&before);
    run.reply(OK[0], None);
    run.now = at(15);
    run.feed(Input::Due);
    assert_eq!(
        (run.progress.status, run.progress.undone.len()),
        (SagaStatus::Compensated, 2)
    );
    let mut run = Run::start(&behind);
    run.reply(OK[0], None);
    run.now = at(15);
    run.feed(Input::Due);
    assert_eq!(run.progress.status, SagaStatus::Running);
}

#[test]
fn a_run_goes_on_with_the_steps_that_it_began_with_whatever_the_code_has_now() {
    let old = shape(vec![
        step(0, Undo::Told, 1, false),
        step(1, Undo::Told, 1, false),
        step(2, Undo::None, 1, false),
    ]);
    // Step 1 is retired, step 2 is removed, step 3 is new and comes first.
    let retired = StepShape {
        retired: true,
        ..step(1, Undo::Told, 1, false)
    };
    let new = shape(vec![
        step(3, Undo::None, 1, false),
        step(0, Undo::Told, 1, false),
        retired,
    ]);
    let mut run = Run::start(&old);
    run.shape = &new;
    run.reply(OK[0], None);
    assert_eq!(
        run.progress.current.as_ref().map(|current| &*current.step),
        Some("1"),
        "the planned step"
    );
    run.reply(OK[1], None);
    assert_eq!(
        (run.progress.status, &run.progress.done[..]),
        (SagaStatus::Completed, &["0".to_owned(), "1".to_owned()][..])
    );
    assert_eq!(new.plan().ahead, ["3", "0"]);
}

#[test]
fn a_run_at_a_step_that_the_code_does_not_know_waits_for_code_that_does() {
    let old = shape(vec![
        step(0, Undo::Told, 1, false),
        step(1, Undo::Told, 1, false),
    ]);
    let new = shape(vec![step(1, Undo::Told, 1, false)]);
    let mut run = Run::start(&old);
    run.reply(OK[0], None);
    run.shape = &new;
    run.reply(NO[1], None);
    // Step 0 must be undone, and the code has no compensation for it.
    assert_eq!(run.progress.status, SagaStatus::Compensating);
    for _ in 0..3 {
        assert!(run.wait());
    }
    assert_eq!(run.progress.status, SagaStatus::Compensating);
    run.shape = &old;
    run.wait();
    assert_eq!(
        (run.progress.status, &run.progress.undone[..]),
        (SagaStatus::Compensated, &["0".to_owned()][..])
    );
}

#[test]
fn a_run_at_an_unknown_step_is_left_alone_though_its_time_is_over_and_nothing_is_given_up() {
    let within = Some(Duration::from_secs(15));
    let old = Shape {
        steps: vec![step(0, Undo::Told, 1, false)],
        within,
    };
    let new = Shape {
        steps: vec![step(1, Undo::Told, 1, false)],
        within,
    };
    let mut run = Run::start(&old);
    run.shape = &new;
    for _ in 0..5 {
        let before = run.now;
        assert!(run.wait());
        assert!(run.now > before, "it is not checked again at once");
        assert_eq!(
            (run.progress.status, run.progress.failure.is_none()),
            (SagaStatus::Running, true)
        );
    }
    run.shape = &old;
    run.wait();
    assert_eq!(
        run.progress.status,
        SagaStatus::Compensated,
        "code that has the step finds the deadline passed"
    );
}

#[test]
fn what_happens_is_told_once_with_the_time_it_took() {
    let shape = shape(vec![
        step(0, Undo::Told, 2, false),
        step(1, Undo::Asked, 1, false),
    ]);
    let mut run = Run::start(&shape);
    run.wait();
    run.wait();
    run.reply(OK[0], None);
    run.reply(NO[1], None);
    let done = |back, seconds| Happened::Done {
        step: "0".into(),
        back,
        took: TimeDelta::seconds(seconds),
    };
    let expected = [
        Happened::Begun,
        Happened::TimedOut {
            step: "0".into(),
            back: false,
        },
        Happened::Retried {
            step: "0".into(),
            back: false,
        },
        // Ten seconds without a reply, and one until the second attempt.
        done(false, 11),
        done(true, 0),
        Happened::Ended(SagaStatus::Compensated),
    ];
    assert_eq!(run.progress.happened, expected);
}

#[test]
fn progress_that_was_stored_before_it_knew_its_cause_can_be_read() {
    let mut stored =
        serde_json::to_value(Run::start(&shape(vec![step(0, Undo::Told, 1, false)])).progress)
            .expect("JSON");
    let fields = stored.as_object_mut().expect("an object");
    assert!(fields.remove("cause").is_some() && !fields.contains_key("happened"));
    assert!(
        fields["current"]
            .as_object_mut()
            .expect("an object")
            .remove("began")
            .is_some()
    );
    let read: Progress = serde_json::from_value(stored).expect("still readable");
    assert_eq!(
        (read.cause, read.current.and_then(|current| current.began)),
        (Cause::default(), None)
    );
}

#[test]
fn an_error_is_stored_without_nul_and_cut() {
    let shape = shape(vec![step(0, Undo::Told, 1, false)]);
    let mut run = Run::start(&shape);
    run.feed(Input::Reply(Some(format!("a\0{}", "b".repeat(3_000)))));
    let error = run.progress.failure.expect("the step has failed").error;
    assert_eq!(error, format!("a{}", "b".repeat(1_999)));
}
