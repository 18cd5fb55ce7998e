//! Operations on subscribers: pause, resume, and decisions about their parked events.

use std::fmt;

use maud::{Markup, html};

use crate::console::error::ConsoleError;
use crate::console::layout::text;
use crate::console::pages::Page;
use crate::console::params::Params;
use crate::console::view::View;
use crate::inspect::Database;
use crate::inspect::parked_by_subscribers::{ParkedFilter, Selected};
use crate::operator::parked::Decision;
use crate::operator::{OperatorError, decide_parked, pause_subscriber, resume_subscriber};

/// An operation on one subscriber.
#[derive(Clone, Debug)]
pub(in crate::console) struct OnSubscriber {
    consumer: String,
    change: Change,
}

#[derive(Clone, Debug)]
enum Change {
    Pause {
        reason: Option<String>,
    },
    Resume,
    Parked {
        /// The number of an event. `None` for all events of the subscriber.
        number: Option<i64>,
        decision: Decision,
    },
}

impl OnSubscriber {
    /// Reads an operation. Returns `None` if the parameters do not describe one.
    pub(super) fn of(operation: &str, params: &Params) -> Option<Self> {
        let parked = |decision| {
            let number = params.get("number").map(str::parse).transpose().ok()?;
            // Everything must be selected expressly.
            let is_selected = number.is_some() || params.get("all").is_some();
            is_selected.then_some(Change::Parked { number, decision })
        };
        let change = match operation {
            "pause-subscriber" => Change::Pause {
                reason: params.get("note").map(str::to_owned),
            },
            "resume-subscriber" => Change::Resume,
            "retry-subscriber-parked" => parked(Decision::Retry)?,
            "discard-subscriber-parked" => parked(Decision::Discard)?,
            _ => return None,
        };
        Some(Self {
            consumer: params.get("subscriber")?.to_owned(),
            change,
        })
    }

    /// Counts the events or subscribers that the operation affects. Changes nothing.
    pub(in crate::console::actions) async fn count(
        &self,
        view: &View,
    ) -> Result<i64, ConsoleError> {
        view.rehearse(async |database| self.run(database, view, true).await)
            .await
    }

    /// Carries the operation out and returns the number of affected events or subscribers.
    pub(in crate::console::actions) async fn carry_out(
        &self,
        view: &View,
    ) -> Result<i64, ConsoleError> {
        view.change(async |database| self.run(database, view, false).await)
            .await
    }

    async fn run(
        &self,
        database: &Database,
        view: &View,
        dry_run: bool,
    ) -> Result<i64, OperatorError> {
        let (consumer, by) = (
            &self.consumer,
            format!("{} in the console", view.user.name()),
        );
        match &self.change {
            Change::Pause { reason } => {
                pause_subscriber(database, consumer, reason.as_deref(), &by, dry_run)
                    .await
                    .map(|change| change.is_new.into())
            }
            Change::Resume => resume_subscriber(database, consumer, dry_run)
                .await
                .map(|change| change.is_new.into()),
            Change::Parked { number, decision } => {
                let filter = ParkedFilter {
                    consumer: Some(consumer.clone()),
                    what: number.map_or(Selected::All, Selected::Number),
                    error: None,
                };
                decide_parked(database, &filter, *decision, &by, dry_run)
                    .await
                    .map(|marked| marked.count)
            }
        }
    }

    pub(super) fn page(&self) -> Page {
        match self.change {
            Change::Parked { .. } => Page::Parked,
            Change::Pause { .. } | Change::Resume => Page::Subscribers,
        }
    }

    pub(super) fn word(&self) -> &'static str {
        match &self.change {
            Change::Pause { .. } => "pause",
            Change::Resume => "resume",
            Change::Parked { decision, .. } => decision.word(),
        }
    }

    pub(super) fn title(&self) -> &'static str {
        match self.word() {
            "pause" => "Pause the subscriber",
            "resume" => "Resume the subscriber",
            "retry" => "Retry parked events of the subscriber",
            _ => "Discard parked events of the subscriber",
        }
    }

    pub(super) fn unit(&self) -> &'static str {
        match self.change {
            Change::Parked { .. } => "events",
            Change::Pause { .. } | Change::Resume => "subscribers",
        }
    }

    /// Returns `true` if the operator may give a reason.
    pub(super) fn takes_note(&self) -> bool {
        matches!(self.change, Change::Pause { .. })
    }

    /// Describes the effect.
    pub(super) fn effect(&self) -> &'static str {
        match self.word() {
            "pause" => {
                "Its instances start no event, no retry and no timer of a saga, from the next \
                 second until the subscriber is resumed. Handlers that run are not interrupted. A \
                 restart does not end the pause. If it is paused already, nothing changes."
            }
            "resume" => {
                "Its instances continue within a second where they stopped, in order. Timers of \
                 sagas wait until the events that are in the topics now are handled."
            }
            "retry" => {
                "The subscriber tries the oldest event of each key within seconds. Events that wait \
                 behind it follow in order. The attempt counts as any other one."
            }
            _ => {
                "The subscriber gives these events up and logs each: they are never handled, and \
                 later events of their keys continue. This cannot be undone."
            }
        }
    }

    /// Describes the selection.
    pub(super) fn selection(&self) -> Markup {
        html! {
            "Subscriber " strong { (text(&self.consumer)) }
            @if let Change::Parked { number, .. } = &self.change {
                @match number {
                    Some(number) => { ": event number " code { (number) } },
                    None => ": all parked events",
                }
            }
        }
    }

    /// Returns the parameters of the page to return to.
    pub(super) fn back(&self) -> Vec<(&'static str, &str)> {
        match self.change {
            Change::Parked { .. } => vec![("subscriber", &self.consumer)],
            Change::Pause { .. } | Change::Resume => Vec::new(),
        }
    }
}

// === impl Display ===

impl fmt::Display for OnSubscriber {
    /// Formats the operation for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, consumer) = (self.word(), text(&self.consumer));
        match &self.change {
            Change::Pause { reason } => {
                let reason = reason.as_deref().map_or("no reason given".to_owned(), text);
                write!(f, "{word} subscriber {consumer}: {reason}")
            }
            Change::Resume => write!(f, "{word} subscriber {consumer}"),
            Change::Parked { number, .. } => {
                write!(f, "{word} parked of subscriber {consumer}: ")?;
                match number {
                    Some(number) => write!(f, "number {number}"),
                    None => f.write_str("all"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_names_its_subscriber_and_selects_everything_expressly() {
        let of = |query: &str| {
            let params = Params::parse(query);
            let operation = params
                .get("op")
                .and_then(|op| OnSubscriber::of(op, &params));
            operation.map(|one| one.to_string())
        };
        for (query, text) in [
            (
                "op=pause-subscriber&subscriber=a&note=x",
                "pause subscriber a: x",
            ),
            ("op=resume-subscriber&subscriber=a", "resume subscriber a"),
            (
                "op=retry-subscriber-parked&subscriber=a&number=7",
                "retry parked of subscriber a: number 7",
            ),
            (
                "op=discard-subscriber-parked&subscriber=a&all=1",
                "discard parked of subscriber a: all",
            ),
        ] {
            assert_eq!(of(query).as_deref(), Some(text));
        }
        for query in [
            "op=pause-subscriber",
            "op=discard-subscriber-parked&subscriber=a",
            "op=discard-subscriber-parked&subscriber=a&number=x&all=1",
            "op=discard-subscriber-parked&all=1",
        ] {
            assert_eq!(of(query), None, "{query}");
        }
    }
}
