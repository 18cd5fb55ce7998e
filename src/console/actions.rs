//! Actions: a page that counts what an action affects, the form that carries it out, and the tasks
//! that do.

mod execution;
mod operation;
mod runs;

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};

pub(super) use self::execution::{Affected, sagas};
use self::operation::Operation;
pub(super) use self::runs::{Run, RunState, Runs};
use super::Shared;
use super::error::ConsoleError;
use super::layout::{count, failure, frame, whole};
use super::pages::Page;
use super::params::Params;
use super::routes::no_such_database;
use super::security::User;
use super::view::View;
use crate::inspect::units::grouped;

/// Time for which the response to a form waits for the outcome. Longer actions have a page.
const OUTCOME_WITHIN: Duration = Duration::from_secs(2);

/// Responds with the number of affected events and the form that carries the action out.
pub(super) async fn confirm(shared: Arc<Shared>, user: User, params: Params) -> Response {
    if !shared.access.allows_actions() {
        return read_only();
    }
    let Some(operation) = Operation::of(&params) else {
        return unknown();
    };
    let Some(view) = View::new(shared, user, operation.page(), params) else {
        return no_such_database();
    };
    let affected = operation.count(&view).await;
    let content = question(&view, &operation, &affected);
    frame(&view, operation.title(), None, &content).into_response()
}

/// Starts an action, and redirects to its page. If the action is not soon complete, it redirects to
/// the page of the running actions.
pub(super) async fn act(shared: Arc<Shared>, user: User, params: Params) -> Response {
    if !shared.access.allows_actions() {
        return read_only();
    }
    let token = params.get("token").unwrap_or_default();
    if !shared.access.is_form_token(&user, token) {
        let text = "The form has expired: the console was started again. Open the page again.\n";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    let Some(operation) = Operation::of(&params) else {
        return unknown();
    };
    let Some(view) = View::new(shared.clone(), user, operation.page(), params) else {
        return no_such_database();
    };
    let Some(run) = shared.runs.start(view.clone(), operation) else {
        let text = "Too many actions are running, and this one has not begun. Wait until one has \
                    ended: /console/actions lists them.\n";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    match run.ended_within(OUTCOME_WITHIN).await {
        RunState::Running => Redirect::to(&view.page_link(Page::Actions, &[])).into_response(),
        RunState::Done(affected) => done(&view, &run.operation, &affected),
        RunState::Failed(error) => failed(&view, &run.operation, &error),
    }
}

/// Redirects to the page of an operation, with its outcome.
fn done(view: &View, operation: &Operation, affected: &Affected) -> Response {
    let Affected {
        events, kept, left, ..
    } = affected;
    let [events, kept, left] = [events, kept, left].map(i64::to_string);
    let mut parameters = operation.back();
    parameters.extend([
        ("done", operation.word()),
        ("count", &events),
        ("kept", &kept),
        ("left", &left),
    ]);
    Redirect::to(&view.page_link(view.page, &parameters)).into_response()
}

fn failed(view: &View, operation: &Operation, error: &ConsoleError) -> Response {
    let back = view.page_link(view.page, &operation.back());
    let content = html! {
        h1 { (operation.title()) }
        (failure("The result", error))
        p { a class="button" href=(back) { "Back" } }
    };
    let page = frame(view, operation.title(), None, &content);
    (StatusCode::BAD_GATEWAY, page).into_response()
}

fn question(
    view: &View,
    operation: &Operation,
    affected: &Result<Affected, ConsoleError>,
) -> Markup {
    let back = view.page_link(view.page, &operation.back());
    html! {
        h1 { (operation.title()) }
        @match affected {
            Err(error) => {
                (failure("The number of events", error))
                p { a class="button" href=(back) { "Back" } }
            },
            Ok(affected) => {
                section aria-label="Dry run" {
                    p { (operation.selection()) }
                    p { "Affected: " strong id="affected" { (grouped(affected.events)) }
                        " " (operation.unit()) "." }
                    @if affected.kept > 0 { (kept(affected)) }
                    p class="soft" { (operation.effect()) }
                    (form(view, operation, affected.events > 0, &back))
                }
            },
        }
    }
}

fn kept(affected: &Affected) -> Markup {
    html! {
        div class="notice warning" {
            strong { (count(affected.kept, "letter")) " will be kept" }
            ul {
                @for (name, reason) in &affected.kept_first {
                    li { (name) " " (whole(reason)) }
                }
            }
        }
    }
}

fn form(view: &View, operation: &Operation, is_useful: bool, back: &str) -> Markup {
    let class = if operation.is_destructive() {
        "danger"
    } else {
        "primary"
    };
    html! {
        form method="post" action="/console/act" {
            input type="hidden" name="token" value=(view.shared.access.form_token(&view.user));
            @for (name, value) in view.params.without(&["token", "note"]) {
                input type="hidden" name=(name) value=(value);
            }
            @if is_useful && operation.takes_note() {
                p { label { "Reason, which the subscriber shows and logs "
                    input type="text" name="note" maxlength="500"; } }
            }
            p class="actions" {
                @if is_useful {
                    button class=(class) type="submit" { (operation.button()) }
                }
                a class="button" href=(back) { "Back" }
            }
        }
    }
}

fn read_only() -> Response {
    let text = "The console is read-only. Start it with --allow-actions.\n";
    (StatusCode::FORBIDDEN, text).into_response()
}

fn unknown() -> Response {
    (StatusCode::BAD_REQUEST, "The console has no such action.\n").into_response()
}
