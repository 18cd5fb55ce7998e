//! Events that have no handler in this version but in another member of the group. They wait for
//! that member, in the order of their aggregate.
//!
//! With order per aggregate, such an event is parked with the later ones of its aggregate, and the
//! next owner of the partition handles it. With another order, or beyond [`HELD_AGGREGATES_MAX`]
//! aggregates, the event waits in place. Nothing behind it is committed then, and the partition is
//! not read further once its buffer is full.

use std::sync::Arc;
use std::time::Duration;

use super::instances::Claim;
use crate::{
    kafka::Message,
    postgres::errors::with_causes,
    subscriber::{
        Meta,
        attempt::permit::HandlerPermit,
        consume::work_item::{DATABASE_PAUSE, PartitionContext, WorkOutcome},
        failure::parked::{Head, ParkedEvents, Setback, parked_key},
        handler::CODE_PAUSE,
        offsets::watermark::Ticket,
    },
};

/// Maximum number of aggregates per partition that are parked for another member. Each takes some
/// hundred bytes of memory and two statements a minute.
pub(crate) const HELD_AGGREGATES_MAX: usize = 10_000;

/// Time between checks of an event that waits in place.
const PAUSE: Duration = Duration::from_secs(1);

/// The place where an event can wait for another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// Parked behind its aggregate, which is parked already.
    BehindOthers,
    /// Parked as the first event of its aggregate.
    Free,
    /// In place, because it cannot be parked.
    None,
}

impl PartitionContext {
    /// Skips an event that no member handles. An event that another member handles is parked or
    /// waits in place.
    pub(crate) async fn settle_unhandled(
        &self,
        ticket: Ticket,
        message: &Arc<Message>,
        room: Room,
        permit: &mut HandlerPermit<'_>,
        ended: &mut WorkOutcome,
    ) {
        let key = (room != Room::None).then(|| parked_key(message.as_it_came()));
        loop {
            let pause = match self.claim(message).await {
                Ok(Claim::Free) => {
                    self.runner.unknown(message);
                    ended.finished.push(ticket);
                    return;
                }
                Ok(Claim::Held) => {
                    self.report_held(message);
                    if let Some(key) = &key {
                        let setback = Setback {
                            error: Some(waits(message)),
                            ..Setback::default()
                        };
                        if self.park(message, &setback, permit).await {
                            self.runner.statistics.held(message.kind());
                            ended.finished.push(ticket);
                            if room == Room::Free {
                                ended.parked.push((key.clone().into(), CODE_PAUSE));
                            }
                        }
                        return;
                    }
                    PAUSE
                }
                Err(error) => {
                    self.runner.close_sessions_after(&error);
                    tracing::warn!(
                        subscriber = self.runner.name,
                        error = with_causes(&error),
                        "the handlers of other members cannot be read yet"
                    );
                    DATABASE_PAUSE
                }
            };
            if !permit.pause(pause).await {
                return;
            }
        }
    }

    /// Handles the case that the oldest event of a parked aggregate has no handler here. Returns
    /// the time until the aggregate is due again.
    pub(crate) async fn try_unhandled_head(
        &self,
        parked_events: &ParkedEvents,
        head: &Head,
        message: &Arc<Message>,
    ) -> Result<Duration, sqlx::Error> {
        if self.claim(message).await? == Claim::Held {
            self.report_held(message);
            return Ok(CODE_PAUSE);
        }
        let record = message.as_it_came();
        tracing::warn!(
            subscriber = self.runner.name,
            event.id = &*message.id(),
            event.r#type = message.kind(),
            topic = &*record.topic,
            partition = record.partition,
            offset = record.offset,
            "a parked event has a type that no instance of the group handles any more, and is \
             skipped"
        );
        self.runner.unknown(message);
        parked_events
            .remove(head.seq)
            .await
            .map(|()| Duration::ZERO)
    }

    async fn claim(&self, message: &Arc<Message>) -> Result<Claim, sqlx::Error> {
        let claim = match &self.registry {
            Some(registry) => registry.claim(message.kind()).await?,
            None => Claim::Free,
        };
        if claim == Claim::Free
            && self
                .runner
                .companions
                .keep(&Meta::new(message.clone(), 1))
                .await?
        {
            return Ok(Claim::Held);
        }
        Ok(claim)
    }

    fn report_held(&self, message: &Message) {
        if self
            .registry
            .as_ref()
            .is_some_and(|registry| registry.is_first_held(message.kind()))
        {
            tracing::warn!(
                subscriber = self.runner.name,
                event.r#type = message.kind(),
                topic = &*message.as_it_came().topic,
                "events of a type without a handler in this version wait for the instances of the \
                 group that handle it: finish the deployment"
            );
        }
    }
}

fn waits(message: &Message) -> String {
    format!("waits for an instance that handles {}", message.kind())
}
