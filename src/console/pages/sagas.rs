//! Sagas: by state and step, a list, and one saga as a diagram of its steps.

use chrono::DateTime;
use maud::{Markup, html};
use uuid::Uuid;

use crate::console::actions::sagas;
use crate::console::layout::{
    Size, Tone, action_links, badge, column, copyable, done, empty, event_id, facts, failure,
    moment, number, or_dash, part, range, table, text, whole,
};
use crate::console::pages::{Page, payload, saga_steps};
use crate::console::view::View;
use crate::inspect::sagas::{
    SUMMARY_MAX, SagaFilter, SagaGroup, SagaLine, definition, ended, names, open, summary,
};
use crate::inspect::units::grouped;
use crate::saga::{Decision, SagaRun};

/// Decisions about a saga, each with its action.
const ACTIONS: [(Decision, (&str, &str)); 2] = [
    (Decision::Retry, ("retry-saga", "Retry …")),
    (Decision::Abort, ("abort-saga", "Abort …")),
];

pub(super) async fn content(view: &View) -> Markup {
    html! {
        h1 { "Sagas" }
        (done(view))
        @match view.params.parsed::<Uuid>("saga") {
            Some(id) => (one(view, id).await),
            None => (list(view).await),
        }
    }
}

/// Contents of the list.
struct Listed {
    names: Vec<String>,
    groups: Vec<SagaGroup>,
    sagas: Vec<SagaLine>,
}

async fn list(view: &View) -> Markup {
    let filter = SagaFilter {
        name: view.params.get("name").map(str::to_owned),
        status: view.params.get("status").map(str::to_owned),
        step: view.params.get("step").map(str::to_owned),
    };
    let of_ended = filter.name.clone().filter(|_| is_ended(view));
    let read = view
        .read(async |database| {
            let names = names(database).await?;
            let groups = summary(database).await?;
            let sagas = match &of_ended {
                Some(name) => ended(database, name, range(view)).await?,
                None => open(database, &filter, range(view)).await?,
            };
            Ok(Listed {
                names,
                groups,
                sagas,
            })
        })
        .await;
    html! {
        @match read {
            Err(error) => (failure("Sagas", &error)),
            Ok(listed) if listed.names.is_empty() => (empty("No saga has run in this database.")),
            Ok(listed) => {
                (group_table(view, &listed.groups))
                (name_links(view, &listed.names))
                (saga_table(view, &listed.sagas))
            },
        }
    }
}

/// Returns `true` if ended sagas are listed.
fn is_ended(view: &View) -> bool {
    view.params.get("list") == Some("ended")
}

fn group_table(view: &View, groups: &[SagaGroup]) -> Markup {
    let total: i64 = groups.iter().map(|group| group.sagas).sum();
    let rows: Vec<Vec<Markup>> = groups
        .iter()
        .map(|group| {
            let step = group.step.as_deref();
            let mut selection = vec![("name", group.name.as_str()), ("status", &group.status)];
            selection.extend(step.map(|step| ("step", step)));
            let link = view.page_link(Page::Sagas, &selection);
            vec![
                html! { (text(&group.name)) },
                status_badge(&group.status),
                html! { (or_dash(step)) },
                html! { a href=(link) { (grouped(group.sagas)) } },
            ]
        })
        .collect();
    let columns = [
        column("Saga"),
        column("State"),
        column("Step"),
        number("Sagas"),
    ];
    html! {
        section aria-labelledby="states-title" {
            h2 id="states-title" { "Open and failed sagas" }
            @if rows.is_empty() {
                (empty("Every saga has completed or was compensated."))
            } @else {
                (table("Sagas by state and step", &columns, &rows))
            }
            @if total == SUMMARY_MAX {
                p class="soft" { "Only " (grouped(SUMMARY_MAX)) " sagas are counted." }
            }
        }
    }
}

/// Returns the links that choose between open and ended sagas of each name.
fn name_links(view: &View, names: &[String]) -> Markup {
    let chosen = view.params.get("name");
    let link = |selection: &[(&str, &str)]| view.page_link(Page::Sagas, selection);
    html! {
        nav class="tabs" aria-label="Lists" {
            @let is_all = (chosen.is_none() && !is_ended(view)).then_some("true");
            a href=(link(&[])) aria-current=[is_all] { "All open" }
            @for name in names {
                @let is_chosen = chosen == Some(name.as_str());
                @let ended = (is_chosen && is_ended(view)).then_some("true");
                @let open = (is_chosen && !is_ended(view)).then_some("true");
                a href=(link(&[("name", name)])) aria-current=[open] { (text(name)) ": open" }
                a href=(link(&[("name", name), ("list", "ended")])) aria-current=[ended] {
                    (text(name)) ": ended" }
            }
        }
    }
}

pub(super) fn status_badge(status: &str) -> Markup {
    let tone = match status {
        "failed" => Tone::Bad,
        "compensating" => Tone::Warning,
        "completed" => Tone::Good,
        _ => Tone::Neutral,
    };
    badge(tone, &text(status))
}

fn saga_table(view: &View, found: &[SagaLine]) -> Markup {
    let row = |one: &SagaLine| {
        let id = one.id.to_string();
        let link = view.page_link(Page::Sagas, &[("saga", &id)]);
        vec![
            html! { a href=(link) { (text(&one.name)) " " (text(&one.key)) } },
            html! {
                (status_badge(&one.status))
                @if let Some(action) = &one.action {
                    " " (badge(Tone::Warning, &format!("{} marked", text(action))))
                }
            },
            html! { (or_dash(one.step.as_deref())) },
            html! { (or_dash(one.error.as_deref())) },
            moment(one.started_at, view.now),
            moment(one.updated_at, view.now),
        ]
    };
    let columns = [
        column("Saga"),
        column("State"),
        column("Step"),
        column("Error"),
        column("Started"),
        column("Last change"),
    ];
    html! {
        section aria-label="Sagas" {
            (part(view, "Sagas", &columns, found, row, "No saga matches."))
        }
    }
}

async fn one(view: &View, id: Uuid) -> Markup {
    let read = view
        .read(async |database| {
            let sagas = sagas(database)?;
            let run = sagas.get(id).await.map_err(|error| database.error(error))?;
            let Some(run) = run else { return Ok(None) };
            let steps = definition(database, &run.name, run.version).await?;
            let mut actions = Vec::new();
            for (decision, action) in ACTIONS {
                let applies = sagas.applies(id, decision).await;
                if applies.map_err(|error| database.error(error))? {
                    actions.push(action);
                }
            }
            Ok(Some((run, steps, actions)))
        })
        .await;
    html! {
        p { a href=(view.page_link(Page::Sagas, &[])) { "← All sagas" } }
        @match read {
            Err(error) => (failure("The saga", &error)),
            Ok(None) => (empty("No saga has this id. Ended sagas are deleted after some time.")),
            Ok(Some((run, steps, actions))) => {
                section aria-labelledby="saga-title" {
                    div class="relay-head" {
                        h2 id="saga-title" { (text(&run.name)) " " (text(&run.key)) }
                        (status_badge(run.status.word()))
                    }
                    (action_links(view, &actions, &[("saga", &run.id.to_string())],
                        Size::Usual, None))
                    (saga_steps::diagram(&run, &steps))
                    (saga_facts(view, &run))
                    (commands(view, &run))
                    (state(view, &run))
                }
            },
        }
    }
}

fn saga_facts(view: &View, run: &SagaRun) -> Markup {
    let mut list = vec![
        ("Id", copyable(&run.id.to_string())),
        ("Version", html! { (run.version) }),
        ("Started", moment(run.started_at, view.now)),
        ("Last change", moment(run.updated_at, view.now)),
    ];
    if let Some(ended) = run.ended_at {
        list.push(("Ended", moment(ended, view.now)));
    }
    if let Some(due) = run.due_at {
        list.push(("Next check", moment(due, view.now)));
    }
    for (name, value) in [("Error", &run.error), ("Obstacle", &run.obstacle)] {
        if let Some(value) = value {
            list.push((name, html! { span class="bad" { (whole(value)) } }));
        }
    }
    if let Some(action) = &run.action {
        list.push(("Decision", html! { (text(action)) ", not applied yet" }));
    }
    if !run.locks.is_empty() {
        list.push(("Locks", html! { (text(&run.locks.join(", "))) }));
    }
    facts(&list)
}

/// Lists the commands. A command's id is a UUIDv7, which contains the time at which it was sent.
fn commands(view: &View, run: &SagaRun) -> Markup {
    let rows: Vec<Vec<Markup>> = run
        .commands
        .iter()
        .map(|command| {
            let sent = command.id.get_timestamp().and_then(|at| {
                let (seconds, nanoseconds) = at.to_unix();
                DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanoseconds)
            });
            vec![
                html! { (text(&command.step)) },
                html! { @if command.is_compensation { "compensation" } @else { "command" } },
                sent.map_or(html! { "–" }, |sent| moment(sent, view.now)),
                event_id(view, &command.id.to_string()),
            ]
        })
        .collect();
    let columns = [
        column("Step"),
        column("Kind"),
        column("Sent"),
        column("Event"),
    ];
    html! {
        @if !rows.is_empty() {
            h3 { "Commands" }
            (table("Commands of the saga", &columns, &rows))
        }
    }
}

fn state(view: &View, run: &SagaRun) -> Markup {
    html! {
        h3 { "State" }
        @if view.shared.hide_payloads {
            p class="soft" { "The console hides payloads." }
        } @else {
            (payload::json_text(&run.state.to_string()))
        }
    }
}
