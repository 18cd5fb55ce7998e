//! One piece of work of a member on the in-memory bus.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::{Ended, Item};
use crate::{
    kafka::Message,
    subscriber::{
        Escalation,
        attempt::{BatchFailed, Runner, Settled, permit::HandlerPermit},
        consume::{lanes::LaneCounts, work_item::tried},
        handler::CODE_PAUSE,
        telemetry::statistics::Count,
    },
};

/// One piece of work.
pub(super) struct WorkItem {
    pub(super) runner: Arc<Runner>,
    pub(super) number: u64,
    pub(super) partition: (Arc<str>, i32),
    pub(super) lanes: LaneCounts,
}

impl WorkItem {
    pub(super) async fn work(self, mut items: Vec<Item>, permit: OwnedSemaphorePermit) -> Ended {
        let singly = match items.len() {
            1 => {
                let drain = CancellationToken::new();
                let mut permit = HandlerPermit::new(&self.runner, permit, &drain);
                match items.pop() {
                    Some(Item::Event(message) | Item::Single(message)) => {
                        handle(&self.runner, &message, &mut permit).await
                    }
                    Some(Item::Malformed(record, reason)) => drop(
                        self.runner
                            .settle_malformed(&record, &reason, &mut permit)
                            .await,
                    ),
                    None => {}
                }
                Vec::new()
            }
            _ => self.together(items).await,
        };
        let lanes = self.lanes.iter().map(|(lane, _)| *lane).collect();
        Ended {
            number: self.number,
            partition: self.partition,
            lanes,
            singly,
        }
    }

    /// Handles several events in one attempt. If it fails, they return to the front of their lanes.
    async fn together(&self, items: Vec<Item>) -> Vec<(u64, Vec<Item>)> {
        let messages: Vec<Arc<Message>> = items.iter().filter_map(Item::message).cloned().collect();
        let Err(BatchFailed { attempts }) = self.runner.settle_together(&messages).await else {
            return Vec::new();
        };
        let mut items = messages
            .into_iter()
            .map(|message| Item::Single(tried(message, attempts)));
        self.lanes
            .iter()
            .map(|(lane, count)| (*lane, items.by_ref().take(*count).collect()))
            .collect()
    }
}

/// Handles an event until it has an outcome. A parked event waits on its own lane, which preserves
/// the order like the table `subscriber_parked` does.
async fn handle(runner: &Runner, message: &Arc<Message>, permit: &mut HandlerPermit<'_>) {
    let (attempts, first_pause) = match (
        runner.settle(message, permit, None).await,
        &runner.escalation,
    ) {
        (Settled::Park { attempts, .. }, Escalation::Park(retry)) => {
            (attempts, retry.pause(0, 0.0))
        }
        (Settled::Waits { .. }, _) => (0, CODE_PAUSE),
        _ => return,
    };
    runner.statistics.add(Count::Parked, message.kind(), 1);
    let (mut pause, mut before) = (first_pause, 0);
    while permit.pause(pause).await {
        let attempts = attempts
            .saturating_add(before)
            .saturating_add(message.attempts_before());
        let message = Arc::new(Message::clone(message).with_attempts_before(attempts));
        match runner.settle_parked(&message, permit, before).await {
            Settled::Again {
                after, attempts, ..
            } => (pause, before) = (after, attempts),
            Settled::Waits { .. } => pause = CODE_PAUSE,
            _ => return,
        }
    }
}
