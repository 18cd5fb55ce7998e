//! Example events of `tidings try`, and the transactions that publish them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::cli::exit::Failure;
use crate::event::{DomainEvent, EventId};
use crate::outbox::{Outbox, PublishError};
use crate::postgres::begin;

/// Orders whose events alternate.
const ORDERS_AT_ONCE: u64 = 5;

/// States of an order. Each has an event.
const STAGES: u64 = 3;

/// Of this number of transactions, the last one is rolled back.
const ROLLED_BACK_EVERY: u64 = 4;

/// Time limit of one transaction. Its statements have shorter ones.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPlaced {
    order_id: u64,
    total_cents: u64,
}

#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPaid {
    order_id: u64,
}

#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderShipped {
    order_id: u64,
}

/// Published only in transactions that are rolled back.
#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderCancelled {
    order_id: u64,
}

/// Numbers of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Each transaction commits one event.
    pub(super) committed: u64,
    pub(super) rolled_back: u64,
}

/// A transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Placed(u64),
    Paid(u64),
    Shipped(u64),
    /// The transaction is rolled back.
    Cancelled(u64),
}

impl Step {
    /// Returns the transaction with this number. Each order is placed, paid and shipped.
    fn of(number: u64) -> Self {
        let commits = |number: u64| number - number / ROLLED_BACK_EVERY;
        let order = |commit: u64| {
            let round = commit / (ORDERS_AT_ONCE * STAGES);
            round * ORDERS_AT_ONCE + commit % ORDERS_AT_ONCE + 1
        };
        if number % ROLLED_BACK_EVERY == ROLLED_BACK_EVERY - 1 {
            return Self::Cancelled(order(commits(number) - 1));
        }
        let commit = commits(number);
        match commit / ORDERS_AT_ONCE % STAGES {
            0 => Self::Placed(order(commit)),
            1 => Self::Paid(order(commit)),
            _ => Self::Shipped(order(commit)),
        }
    }

    async fn publish(
        self,
        outbox: &Outbox,
        tx: &mut PgConnection,
    ) -> Result<EventId, PublishError> {
        match self {
            Self::Placed(order_id) => {
                let total_cents = 500 + order_id * 499 % 4_000;
                let placed = OrderPlaced {
                    order_id,
                    total_cents,
                };
                outbox.publish(tx, &placed).await
            }
            Self::Paid(order_id) => outbox.publish(tx, &OrderPaid { order_id }).await,
            Self::Shipped(order_id) => outbox.publish(tx, &OrderShipped { order_id }).await,
            Self::Cancelled(order_id) => outbox.publish(tx, &OrderCancelled { order_id }).await,
        }
    }
}

/// Writer of the example events.
pub(super) struct Orders {
    pool: PgPool,
    outbox: Outbox,
    /// Number of the next transaction.
    next: u64,
    counts: Counts,
}

impl Orders {
    pub(super) fn new(pool: PgPool, schema: &str) -> Self {
        Self {
            pool,
            outbox: Outbox::new().schema(schema),
            next: 0,
            counts: Counts::default(),
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Publishes until `events` are committed or `stop` is cancelled.
    ///
    /// # Errors
    ///
    /// Returns the error of a transaction.
    pub(super) async fn publish(
        &mut self,
        events: Option<u64>,
        rate: u32,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let mut ticks = interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while events.is_none_or(|events| self.counts.committed < events) {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            self.commit().await?;
        }
        Ok(())
    }

    /// Commits the next event, and rolls back the transactions before it that are to be rolled
    /// back. Returns the id of the event.
    ///
    /// # Errors
    ///
    /// Returns the error of a transaction, or an error if it does not end in time.
    pub(super) async fn commit(&mut self) -> Result<EventId, Failure> {
        loop {
            let step = Step::of(self.next);
            let id = timeout(TRANSACTION_TIMEOUT, self.transaction(step)).await;
            let id = id.map_err(|_| {
                let seconds = TRANSACTION_TIMEOUT.as_secs();
                Failure::Failed(format!("a transaction did not end within {seconds} s"))
            })??;
            self.next += 1;
            if matches!(step, Step::Cancelled(_)) {
                self.counts.rolled_back += 1;
                continue;
            }
            self.counts.committed += 1;
            return Ok(id);
        }
    }

    async fn transaction(&self, step: Step) -> Result<EventId, Failure> {
        let failed = |error: sqlx::Error| Failure::failed("a transaction failed", &error);
        let mut tx = begin(&self.pool).await.map_err(failed)?;
        let id = step
            .publish(&self.outbox, &mut tx)
            .await
            .map_err(|error| Failure::failed("cannot publish an event", &error))?;
        match step {
            Step::Cancelled(_) => tx.rollback().await,
            _ => tx.commit().await,
        }
        .map_err(failed)?;
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn each_order_is_placed_paid_and_shipped_and_every_fourth_transaction_is_rolled_back() {
        let mut states: BTreeMap<u64, Vec<Step>> = BTreeMap::new();
        let mut rolled_back = 0;
        for number in 0..80 {
            match Step::of(number) {
                Step::Cancelled(order) => {
                    assert!(states.contains_key(&order), "{order} exists");
                    rolled_back += 1;
                }
                step @ (Step::Placed(order) | Step::Paid(order) | Step::Shipped(order)) => {
                    states.entry(order).or_default().push(step);
                }
            }
        }
        assert_eq!(rolled_back, 20);
        assert_eq!(states.len(), 20);
        for (order, steps) in states {
            let whole = [Step::Placed(order), Step::Paid(order), Step::Shipped(order)];
            assert_eq!(steps, whole, "{order}");
        }
    }
}
