//! Pages of the console, one file per page. Each reads through `inspect`.

mod actions;
mod dead_letters;
mod event;
mod events;
mod overview;
mod parked;
mod payload;
mod saga_steps;
mod sagas;
mod scheduled;
mod subscribers;

use std::time::Duration;

use maud::Markup;

use super::params::Params;
use super::view::View;

/// A page of the navigation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    Overview,
    Events,
    Parked,
    DeadLetters,
    Subscribers,
    Sagas,
    Scheduled,
    Actions,
}

impl Page {
    pub(super) const ALL: [Self; 8] = [
        Self::Overview,
        Self::Events,
        Self::Parked,
        Self::DeadLetters,
        Self::Subscribers,
        Self::Sagas,
        Self::Scheduled,
        Self::Actions,
    ];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Events => "Events",
            Self::Parked => "Parked",
            Self::DeadLetters => "Dead letters",
            Self::Subscribers => "Subscribers",
            Self::Sagas => "Sagas",
            Self::Scheduled => "Scheduled",
            Self::Actions => "Actions",
        }
    }

    /// Returns the name in addresses.
    pub(super) fn slug(self) -> &'static str {
        match self {
            Self::Overview => "overview",
            Self::Events => "events",
            Self::Parked => "parked",
            Self::DeadLetters => "dead-letters",
            Self::Subscribers => "subscribers",
            Self::Sagas => "sagas",
            Self::Scheduled => "scheduled",
            Self::Actions => "actions",
        }
    }

    pub(super) fn of_slug(slug: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|page| page.slug() == slug)
    }

    pub(super) fn path(self) -> String {
        match self {
            Self::Overview => "/console".into(),
            page => format!("/console/{}", page.slug()),
        }
    }

    /// Returns `true` if the navigation shows the page.
    pub(super) fn is_listed(self, may_act: bool) -> bool {
        self != Self::Actions || may_act
    }

    /// Returns `true` if the page shows the selected database alone.
    pub(super) fn is_of_one_database(self) -> bool {
        !matches!(self, Self::Overview | Self::Actions)
    }

    /// Returns `true` if the page updates by itself. Pages that read Kafka do not, because each
    /// update would open connections to the brokers.
    pub(super) fn is_live(self, params: &Params) -> bool {
        let reads_kafka = match self {
            Self::DeadLetters => true,
            Self::Events => ["event", "q"].iter().any(|name| params.get(name).is_some()),
            Self::Subscribers => params.get("subscriber").is_some(),
            _ => false,
        };
        let is_later_part = ["from", "before"]
            .iter()
            .any(|name| params.get(name).is_some());
        !reads_kafka && !is_later_part
    }

    /// Returns the minimum time between two updates.
    pub(super) fn live_every(self) -> Duration {
        match self {
            // It shows the samples, which all tabs share.
            Self::Overview => Duration::ZERO,
            // It shows the memory of the console.
            Self::Actions => Duration::ZERO,
            _ => Duration::from_secs(5),
        }
    }

    /// Reads and renders the content.
    pub(super) async fn content(self, view: &View) -> Markup {
        match self {
            Self::Overview => overview::content(view),
            Self::Events => events::content(view).await,
            Self::Parked => parked::content(view).await,
            Self::DeadLetters => dead_letters::content(view).await,
            Self::Subscribers => subscribers::content(view).await,
            Self::Sagas => sagas::content(view).await,
            Self::Scheduled => scheduled::content(view).await,
            Self::Actions => actions::content(view),
        }
    }
}
