//! Actions: the ones that run, with their progress, and the ones that ended last.

use maud::{Markup, html};

use crate::console::actions::{Affected, Run, RunState};
use crate::console::layout::{Tone, badge, column, empty, moment, table, text, whole};
use crate::console::view::View;
use crate::inspect::units::grouped;

pub(super) fn content(view: &View) -> Markup {
    let runs = view.shared.runs.latest_first();
    let rows: Vec<Vec<Markup>> = runs.iter().map(|run| row(view, run)).collect();
    let columns = [
        column("Action"),
        column("State"),
        column("Database"),
        column("User"),
        column("Started"),
    ];
    html! {
        h1 { "Actions" }
        p class="soft" {
            "The latest actions of this console since its start. An action continues when its page "
            "is closed. The log has all of them."
        }
        section aria-label="Actions" {
            @if rows.is_empty() {
                (empty("No action was carried out since the start of the console."))
            } @else {
                (table("Actions", &columns, &rows))
            }
        }
    }
}

fn row(view: &View, run: &Run) -> Vec<Markup> {
    let of_database = view.at(Some(&run.database));
    let back = of_database.page_link(run.operation.page(), &run.operation.back());
    vec![
        html! { a href=(back) { (text(&run.operation.to_string())) } },
        state(run),
        html! { (text(&run.database)) },
        html! { (text(&run.user)) },
        moment(run.started_at, view.now),
    ]
}

fn state(run: &Run) -> Markup {
    match run.state() {
        RunState::Running => html! {
            (badge(Tone::Neutral, "running"))
            @if let Some((examined, selected)) = run.letters() {
                " " (number(examined)) " of " (number(selected)) " letters"
            }
        },
        RunState::Failed(error) => html! {
            (badge(Tone::Bad, "failed")) " " (whole(&error.to_string()))
        },
        RunState::Done(affected) => html! {
            @let is_whole = affected.left == 0;
            (badge(if is_whole { Tone::Good } else { Tone::Warning },
                if is_whole { "done" } else { "stopped" }))
            " " (grouped(affected.events)) " " (run.operation.unit())
            (rest(&affected))
        },
    }
}

/// Shows the letters that an action did not change.
fn rest(affected: &Affected) -> Markup {
    html! {
        @if affected.left > 0 {
            ", " (grouped(affected.left)) " were not reached; repeat the action for them"
        }
        @if affected.kept > 0 {
            details {
                summary { (grouped(affected.kept)) " kept" }
                ul {
                    @for (name, reason) in &affected.kept_first {
                        li { (name) " " (whole(reason)) }
                    }
                }
            }
        }
    }
}

fn number(number: usize) -> String {
    grouped(i64::try_from(number).unwrap_or(i64::MAX))
}
