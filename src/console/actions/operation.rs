//! Operations of the console: their parameters, their names and their effects in words.
//! `subscribers` has those on subscribers.

pub(super) mod subscribers;

use std::fmt;

use maud::{Markup, html};
use uuid::Uuid;

use self::subscribers::OnSubscriber;
use crate::console::layout::text;
use crate::console::pages::Page;
use crate::console::params::Params;
use crate::inspect::aggregate::aggregate as parse_aggregate;
use crate::inspect::dead_letters::place as letter_place;
use crate::inspect::parked::Selection;
use crate::operator::LetterDecision;
use crate::operator::parked::Decision;
use crate::subscriber::failure::redrive::Filter;

/// Letters of one action. All of them are in memory while it runs.
pub(super) const LETTERS_MAX: usize = 10_000;

/// An operation and its selection.
#[derive(Clone, Debug)]
pub(in crate::console) enum Operation {
    Parked {
        relay: String,
        what: Selection,
        decision: Decision,
    },
    Letters {
        topic: String,
        filter: Filter,
        decision: LetterDecision,
    },
    Saga {
        id: Uuid,
        is_retry: bool,
    },
    Cancel {
        id: Uuid,
    },
    Subscriber(OnSubscriber),
}

impl Operation {
    /// Reads an operation. Returns `None` if the parameters do not describe one.
    pub(super) fn of(params: &Params) -> Option<Self> {
        let parked = |decision| {
            Some(Self::Parked {
                relay: params.get("relay")?.to_owned(),
                what: selection(params)?,
                decision,
            })
        };
        let letters = |decision| {
            Some(Self::Letters {
                topic: params.get("topic")?.to_owned(),
                filter: filter(params)?,
                decision,
            })
        };
        let saga = |is_retry| {
            Some(Self::Saga {
                id: params.parsed("saga")?,
                is_retry,
            })
        };
        match params.get("op")? {
            "retry-parked" => parked(Decision::Retry),
            "discard-parked" => parked(Decision::Discard),
            "replay-letters" => letters(LetterDecision::Replay),
            "discard-letters" => letters(LetterDecision::Discard),
            "retry-saga" => saga(true),
            "abort-saga" => saga(false),
            "cancel-scheduled" => Some(Self::Cancel {
                id: params.parsed("event")?,
            }),
            operation => OnSubscriber::of(operation, params).map(Self::Subscriber),
        }
    }

    pub(in crate::console) fn page(&self) -> Page {
        match self {
            Self::Parked { .. } => Page::Parked,
            Self::Letters { .. } => Page::DeadLetters,
            Self::Saga { .. } => Page::Sagas,
            Self::Cancel { .. } => Page::Scheduled,
            Self::Subscriber(operation) => operation.page(),
        }
    }

    /// Returns the word of the outcome, which the page of the operation understands.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Parked { decision, .. } => decision.word(),
            Self::Letters { decision, .. } => match decision {
                LetterDecision::Replay => "replay",
                LetterDecision::Discard => "discard",
            },
            Self::Saga { is_retry: true, .. } => "retry",
            Self::Saga { .. } => "abort",
            Self::Cancel { .. } => "cancel",
            Self::Subscriber(operation) => operation.word(),
        }
    }

    pub(super) fn title(&self) -> &'static str {
        match (self, self.word()) {
            (Self::Parked { .. }, "retry") => "Retry parked events",
            (Self::Parked { .. }, _) => "Discard parked events",
            (Self::Letters { .. }, "replay") => "Replay dead letters",
            (Self::Letters { .. }, _) => "Discard dead letters",
            (Self::Saga { .. }, "retry") => "Retry the saga",
            (Self::Saga { .. }, _) => "Abort the saga",
            (Self::Cancel { .. }, _) => "Cancel the scheduled event",
            (Self::Subscriber(operation), _) => operation.title(),
        }
    }

    pub(super) fn button(&self) -> &'static str {
        match self.word() {
            "retry" => "Retry",
            "discard" => "Discard",
            "replay" => "Replay",
            "abort" => "Abort",
            "pause" => "Pause",
            "resume" => "Resume",
            _ => "Cancel the event",
        }
    }

    pub(in crate::console) fn unit(&self) -> &'static str {
        match self {
            Self::Parked { .. } | Self::Cancel { .. } => "events",
            Self::Letters { .. } => "letters",
            Self::Saga { .. } => "sagas",
            Self::Subscriber(operation) => operation.unit(),
        }
    }

    /// Describes the effect.
    pub(super) fn effect(&self) -> &'static str {
        match (self, self.word()) {
            (Self::Parked { .. }, "retry") => {
                "The leading relay tries them within seconds, in the order of each aggregate. \
                 Events that wait behind them follow. An event that fails again stays parked."
            }
            (Self::Parked { .. }, _) => {
                "The leading relay gives these events up: they are never published, and events \
                 that wait behind them follow. This cannot be undone."
            }
            (Self::Letters { .. }, "replay") => {
                "Each letter returns to the subscriber that could not handle it, and to no other \
                 one. One action replays up to 10,000 letters; repeat it for further ones."
            }
            (Self::Letters { .. }, _) => {
                "The letters are no longer listed or replayed. Their records stay in the topic \
                 until its retention removes them."
            }
            (Self::Saga { .. }, "retry") => {
                "The service that runs the saga retries the current step, or what has failed, \
                 within a second."
            }
            (Self::Saga { .. }, _) => {
                "The service that runs the saga compensates its completed steps in reverse order. \
                 A saga that has passed its pivot is not affected."
            }
            (Self::Cancel { .. }, _) => "The event is never published. This cannot be undone.",
            (Self::Subscriber(operation), _) => operation.effect(),
        }
    }

    /// Returns `true` if the effect cannot be undone.
    pub(super) fn is_destructive(&self) -> bool {
        matches!(self.word(), "discard" | "abort" | "cancel")
    }

    /// Returns `true` if the operator may give a reason, in the parameter `note`.
    pub(super) fn takes_note(&self) -> bool {
        matches!(self, Self::Subscriber(operation) if operation.takes_note())
    }

    /// Describes the selection.
    pub(super) fn selection(&self) -> Markup {
        match self {
            Self::Parked { relay, what, .. } => html! {
                "Relay " strong { (text(relay)) } ": "
                @match what {
                    Selection::All => "all parked events",
                    Selection::Event(id) => { "event " code { (id) } },
                    Selection::Aggregate(kind, id) => {
                        "aggregate " code { (text(kind)) "/" (text(id)) }
                    },
                    Selection::Reason(reason) => {
                        "events with the reason “" (text(reason)) "”"
                    },
                }
            },
            Self::Letters { topic, filter, .. } => html! {
                "Topic " strong { (text(topic)) } ": "
                @match (&filter.reason, filter.places.first()) {
                    (Some(reason), _) => { "letters with the reason “" (text(reason)) "”" },
                    (None, Some((partition, offset))) => {
                        "letter " code { (partition) "/" (offset) }
                    },
                    (None, None) => "all letters",
                }
            },
            Self::Saga { id, .. } => html! { "Saga " code { (id) } },
            Self::Cancel { id } => html! { "Event " code { (id) } },
            Self::Subscriber(operation) => operation.selection(),
        }
    }

    /// Returns the parameters of the page to return to.
    pub(in crate::console) fn back(&self) -> Vec<(&'static str, &str)> {
        match self {
            Self::Parked { relay, .. } => vec![("relay", relay)],
            Self::Letters { topic, .. } => vec![("topic", topic)],
            Self::Saga { .. } | Self::Cancel { .. } => Vec::new(),
            Self::Subscriber(operation) => operation.back(),
        }
    }
}

/// Reads the selection of parked events. Everything must be selected expressly.
fn selection(params: &Params) -> Option<Selection> {
    if let Some(reason) = params.get("reason") {
        return Some(Selection::Reason(reason.to_owned()));
    }
    if let Some(id) = params.get("event") {
        return id.parse().ok().map(Selection::Event);
    }
    if let Some(aggregate) = params.get("aggregate") {
        let (kind, id) = parse_aggregate(aggregate).ok()?;
        return Some(Selection::Aggregate(kind, id));
    }
    params.get("all").map(|_| Selection::All)
}

/// Reads the selection of letters. Everything must be selected expressly.
fn filter(params: &Params) -> Option<Filter> {
    let all = Filter {
        max: Some(LETTERS_MAX),
        ..Filter::default()
    };
    if let Some(reason) = params.get("reason") {
        return Some(Filter {
            reason: Some(reason.to_owned()),
            ..all
        });
    }
    if let Some(place) = params.get("letter") {
        return Some(Filter {
            places: vec![letter_place(place).ok()?],
            ..all
        });
    }
    params.get("all").map(|_| all)
}

// === impl Display ===

impl fmt::Display for Operation {
    /// Formats the operation for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.word();
        match self {
            Self::Parked { relay, what, .. } => {
                write!(f, "{word} parked of relay {}: ", text(relay))?;
                match what {
                    Selection::All => f.write_str("all"),
                    Selection::Event(id) => write!(f, "event {id}"),
                    Selection::Aggregate(kind, id) => write!(f, "{}/{}", text(kind), text(id)),
                    Selection::Reason(reason) => write!(f, "reason {}", text(reason)),
                }
            }
            Self::Letters { topic, filter, .. } => {
                write!(f, "{word} dead letters of {}: ", text(topic))?;
                match (&filter.reason, filter.places.first()) {
                    (Some(reason), _) => write!(f, "reason {}", text(reason)),
                    (None, Some((partition, offset))) => write!(f, "{partition}/{offset}"),
                    (None, None) => f.write_str("all"),
                }
            }
            Self::Saga { id, .. } => write!(f, "{word} saga {id}"),
            Self::Cancel { id } => write!(f, "{word} scheduled event {id}"),
            Self::Subscriber(operation) => operation.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_selected_only_expressly() {
        let of = |query: &str| Operation::of(&Params::parse(query)).map(|one| one.to_string());
        let all = "op=discard-parked&relay=a&all=1";
        assert_eq!(of(all).as_deref(), Some("discard parked of relay a: all"));
        for query in [
            "op=discard-parked&relay=a",
            "op=discard-parked&relay=a&event=x",
            "op=discard-parked&relay=a&aggregate=x&all=1",
            "op=discard-letters&topic=a.dlt",
            "op=discard-letters&topic=a.dlt&letter=1&all=1",
            "op=discard-parked&all=1",
            "op=drop&relay=a&all=1",
            "",
        ] {
            assert_eq!(of(query), None, "{query}");
        }
        let letter = of("op=replay-letters&topic=a.dlt&letter=3/120");
        assert_eq!(
            letter.as_deref(),
            Some("replay dead letters of a.dlt: 3/120")
        );
    }
}
