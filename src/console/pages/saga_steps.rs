//! Diagram of a saga's steps: their state, their commands and the replies to them.

use maud::{Markup, html};

use crate::console::layout::text;
use crate::inspect::sagas::{StepDefinition, StepMessages};
use crate::saga::{SagaRun, SagaStatus};

/// State of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StepState {
    Done,
    Compensated,
    CompensationFailed,
    Failed,
    Current,
    Compensating,
    Ahead,
}

impl StepState {
    fn of(step: &str, run: &SagaRun) -> Self {
        let is = |steps: &[String]| steps.iter().any(|one| one == step);
        let is_failed = run
            .failure
            .as_ref()
            .is_some_and(|failure| failure.step == step);
        let is_current = run.step.as_deref() == Some(step);
        if run
            .failed_compensations
            .iter()
            .any(|failed| failed.step == step)
        {
            return Self::CompensationFailed;
        }
        if is(&run.undone) {
            return Self::Compensated;
        }
        match run.status {
            SagaStatus::Compensating if is_current && !is_failed => Self::Compensating,
            _ if is(&run.done) => Self::Done,
            SagaStatus::Running if is_current => Self::Current,
            _ if is_failed || is_current && run.status == SagaStatus::Failed => Self::Failed,
            _ if is_current => Self::Current,
            _ => Self::Ahead,
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Done => "step done",
            Self::Compensated => "step undone",
            Self::CompensationFailed | Self::Failed => "step failed",
            Self::Current | Self::Compensating => "step now",
            Self::Ahead => "step",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Done => "✓ done",
            Self::Compensated => "↩ compensated",
            Self::CompensationFailed => "✗ compensation failed",
            Self::Failed => "✗ failed",
            Self::Current => "… in progress",
            Self::Compensating => "↩ being compensated",
            Self::Ahead => "not started",
        }
    }
}

/// Draws the steps in their order.
pub(super) fn diagram(run: &SagaRun, definition: &[StepDefinition]) -> Markup {
    let steps = order(run, definition);
    html! {
        @if steps.is_empty() {
            p class="soft" { "The steps are unknown." }
        } @else {
            ol class="steps" aria-label="Steps of the saga" {
                @for name in steps {
                    @let state = StepState::of(name, run);
                    @let defined = definition.iter().find(|step| step.step == name);
                    li {
                        div class=(state.class()) {
                            strong { (text(name)) }
                            small { (state.words()) }
                            @if let Some(step) = defined { (messages(step)) }
                        }
                    }
                }
            }
        }
    }
}

fn messages(step: &StepDefinition) -> Markup {
    let line = |messages: &StepMessages, kind: &str| {
        let replies = messages.replies.join(" | ");
        html! {
            @if messages.local { span class="soft" { (kind) "local" } }
            @if !messages.sends.is_empty() {
                span class="soft" {
                    (kind) (text(&messages.sends.join(", ")))
                    @if !replies.is_empty() { " → " (text(&replies)) }
                }
            }
        }
    };
    html! {
        @if step.pivot { span class="soft" { "pivot" } }
        (line(&step.forth, ""))
        (line(&step.back, "undo: "))
    }
}

/// Returns the steps in the order of the definition. Without one, the order of the run is used.
fn order<'r>(run: &'r SagaRun, definition: &'r [StepDefinition]) -> Vec<&'r str> {
    let of_run: Vec<&str> = run
        .done
        .iter()
        .chain(run.undone.iter().rev())
        .map(String::as_str)
        .chain(
            run.failed_compensations
                .iter()
                .map(|failed| failed.step.as_str()),
        )
        .chain(run.failure.iter().map(|failure| failure.step.as_str()))
        .chain(run.step.as_deref())
        .chain(run.ahead.iter().map(String::as_str))
        .collect();
    let defined = definition
        .iter()
        .filter(|step| !step.retired || of_run.contains(&step.step.as_str()))
        .map(|step| step.step.as_str());
    let mut steps: Vec<&str> = Vec::new();
    for step in defined.chain(of_run.iter().copied()) {
        if !steps.contains(&step) {
            steps.push(step);
        }
    }
    steps
}
