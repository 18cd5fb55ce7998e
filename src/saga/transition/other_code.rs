//! Events that a saga in other code waits for: another version, or a name that no subscriber
//! runs any more.

use sqlx::PgConnection;
use uuid::Uuid;

use super::Engine;
use crate::saga::definition::SagaState;
use crate::saga::obstacle::Obstacle;
use crate::saga::progress::{Current, Progress};
use crate::saga::registration::{LIVE_SECONDS, registered};
use crate::saga::signature::replies;
use crate::saga::store::{Store, Stored};
use crate::subscriber::Meta;

/// Result of the check whether other code waits for an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::saga) enum Elsewhere {
    /// The correlation id does not belong to a saga.
    NoSaga,
    /// The correlation id belongs to a saga, and no other code waits for the event.
    NotAwaited,
    /// Other code waits for the event, for this reason.
    Awaited(String),
}

impl<S: SagaState> Engine<S> {
    /// Checks whether other code waits for an event: an open saga of this name at a step that this
    /// code does not have, or an open saga of a name that this subscriber no longer runs. Takes no
    /// locks.
    ///
    /// # Errors
    ///
    /// Returns the server's error.
    pub(in crate::saga) async fn awaited_elsewhere(
        &self,
        store: &Store,
        conn: &mut PgConnection,
        id: Uuid,
        meta: &Meta,
    ) -> Result<Elsewhere, sqlx::Error> {
        let Some(here) = self.here.get() else {
            return Ok(Elsewhere::NotAwaited);
        };
        let Some(stored) = store.read(conn, id).await? else {
            return Ok(Elsewhere::NoSaga);
        };
        let is_mine = stored.name == self.saga.name;
        if !is_mine && here.names.contains(&stored.name) {
            return Ok(Elsewhere::NotAwaited);
        }
        if !is_mine {
            let code = registered(conn, store.schema(), &stored.name).await?;
            let was_here = code.iter().any(|code| code.consumer == here.consumer);
            let is_run = code
                .iter()
                .any(|code| code.consumer != here.consumer && code.seen_seconds < LIVE_SECONDS);
            if !was_here || is_run {
                return Ok(Elsewhere::NotAwaited);
            }
        }
        let name = &stored.name;
        let waits =
            |obstacle: Obstacle| Elsewhere::Awaited(format!("saga {name} {id} waits: {obstacle}"));
        let progress = match stored.progress() {
            Ok(progress) => progress,
            Err(obstacle) => return Ok(waits(obstacle)),
        };
        if !self
            .answers_other_code(store, conn, &stored, &progress, meta)
            .await?
        {
            return Ok(Elsewhere::NotAwaited);
        }
        let reason = || {
            format!(
                "`{}` is a reply to saga {name} {id}, which this code does not run",
                meta.event_type()
            )
        };
        let unknown = self.unknown(&progress).filter(|_| is_mine);
        Ok(unknown.map_or_else(|| Elsewhere::Awaited(reason()), waits))
    }

    /// Returns `true` if another definition of the saga takes this event as a reply to the current
    /// step, and this code does not.
    pub(super) async fn answers_other_code(
        &self,
        store: &Store,
        conn: &mut PgConnection,
        stored: &Stored,
        progress: &Progress,
        meta: &Meta,
    ) -> Result<bool, sqlx::Error> {
        let cause = meta.causation_id().and_then(|id| id.parse().ok());
        let Some(current) = progress
            .current
            .as_ref()
            .filter(|_| !progress.status.is_end())
        else {
            return Ok(false);
        };
        if progress.is_of_another_step(cause)
            || self.is_reply_here(stored, current, meta.event_type())
        {
            return Ok(false);
        }
        let code = registered(conn, store.schema(), &stored.name).await?;
        // Versions of the library without registration left no entry, so the replies of such a
        // definition are unknown.
        let is_known = stored.name == self.saga.name && self.shape.knows(progress);
        Ok(
            replies(&code, &current.step, current.back).map_or(!is_known, |types| {
                types.iter().any(|one| one == meta.event_type())
            }),
        )
    }

    /// Returns `true` if this code takes such an event as a reply to the current step. Then this
    /// code alone decides about the event.
    fn is_reply_here(&self, stored: &Stored, current: &Current, event_type: &str) -> bool {
        let action = self.saga.action(&current.step, current.back);
        stored.name == self.saga.name && action.is_some_and(|action| action.takes(event_type))
    }
}
