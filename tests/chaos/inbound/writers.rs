//! Writers, which act as services. One in three places orders, and the others book on accounts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::PgConnection;
use tidings::Outbox;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::Failure;
use super::super::random::Random;
use super::super::transaction::execute;
use super::super::writers::{Work, serve};
use super::events::{
    Booking, Closed, Deposited, FIRST_TYPES, Frozen, OrderPlaced, Renamed, Withdrawn,
};
use super::plan::Plan;
use super::tables::{ACCOUNTS, GATE};

/// All writers of a history.
pub(crate) struct Writers {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    /// The number of booking types that at least one member handles.
    types: Arc<AtomicUsize>,
}

/// Starts the writers.
pub(crate) fn start(plan: &Plan, url: &str) -> Writers {
    let (stop, types, mut tasks) = (
        CancellationToken::new(),
        Arc::new(AtomicUsize::new(FIRST_TYPES)),
        JoinSet::new(),
    );
    for number in 0..plan.writers {
        let random = Random::new(plan.seed, number + 1);
        let writer = Writer {
            random,
            types: types.clone(),
            orders: number % 3 == 1,
        };
        tasks.spawn(serve(writer, url.to_owned(), stop.clone()));
    }
    Writers { stop, tasks, types }
}

impl Writers {
    /// Allows writers to publish the first `types` booking types.
    pub(crate) fn allow_types(&self, types: usize) {
        self.types.fetch_max(types, Ordering::SeqCst);
    }

    /// Stops the writers, and waits until each has finished its transaction.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

struct Writer {
    random: Random,
    types: Arc<AtomicUsize>,
    orders: bool,
}

impl Work for Writer {
    async fn open(&mut self, _: &mut PgConnection) -> Result<(), Failure> {
        Ok(())
    }

    async fn transact(&mut self, session: &mut PgConnection) -> Result<(), Failure> {
        execute(session, &format!("begin; select from {GATE} for share")).await?;
        if self.orders {
            self.order(session).await?;
        } else {
            self.book(session).await?;
        }
        execute(
            session,
            if self.random.one_in(8) {
                "rollback"
            } else {
                "commit"
            },
        )
        .await
    }

    fn pause(&mut self) -> Duration {
        // Orders are rarer, because a saga costs more than a booking.
        if self.orders {
            self.random.millis(150, 600)
        } else {
            self.random.millis(10, 120)
        }
    }
}

impl Writer {
    async fn book(&mut self, session: &mut PgConnection) -> Result<(), Failure> {
        let random = &mut self.random;
        let mut accounts: Vec<u64> = (0..1 + random.below(4))
            .map(|_| {
                if random.one_in(4) {
                    0
                } else {
                    random.below(ACCOUNTS)
                }
            })
            .collect();
        // A common lock order avoids most deadlocks.
        accounts.sort_unstable();
        for account in accounts {
            let account = format!("a-{account}");
            let raise = "update account set version = version + 1 where id = $1 returning version";
            let version: i64 = sqlx::query_scalar(raise)
                .bind(&account)
                .fetch_one(&mut *session)
                .await?;
            let fails = draw_fails(random);
            let booking = Booking {
                account: account.clone(),
                version,
                fails,
            };
            let outbox = Outbox::new();
            let id = match random.below(self.types.load(Ordering::SeqCst) as u64) {
                0 => {
                    outbox
                        .publish(&mut *session, &Deposited::from(booking))
                        .await?
                }
                1 => {
                    outbox
                        .publish(&mut *session, &Withdrawn::from(booking))
                        .await?
                }
                2 => {
                    outbox
                        .publish(&mut *session, &Renamed::from(booking))
                        .await?
                }
                3 => {
                    outbox
                        .publish(&mut *session, &Frozen::from(booking))
                        .await?
                }
                _ => {
                    outbox
                        .publish(&mut *session, &Closed::from(booking))
                        .await?
                }
            };
            let insert = "insert into history values ($1, $2, $3, $4)";
            let insert = sqlx::query(insert)
                .bind(&account)
                .bind(version)
                .bind(id.to_string())
                .bind(fails.cast_signed());
            insert.execute(&mut *session).await?;
        }
        Ok(())
    }

    async fn order(&mut self, session: &mut PgConnection) -> Result<(), Failure> {
        let random = &mut self.random;
        let (quantity, cents) = (
            1 + random.below(5).cast_signed(),
            100 + random.below(10_000).cast_signed(),
        );
        let refused_by = match random.below(40) {
            0..=3 => "stock",
            4..=7 => "payment",
            8..=11 => "parcel",
            12 => "silence",
            _ => "",
        };
        let insert =
            "insert into orders (quantity, cents, refused_by) values ($1, $2, $3) returning id";
        let insert = sqlx::query_scalar(insert)
            .bind(quantity)
            .bind(cents)
            .bind(refused_by);
        let order_id = insert.fetch_one(&mut *session).await?;
        let order = OrderPlaced {
            order_id,
            quantity,
            cents,
            refused_by: refused_by.to_owned(),
            fails: draw_fails(random),
        };
        Outbox::new().publish(&mut *session, &order).await?;
        Ok(())
    }
}

/// Draws the number of failing attempts of an event. A few events fail once or twice in place.
/// Fewer fail often enough to be escalated.
fn draw_fails(random: &mut Random) -> u32 {
    match random.below(300) {
        0 | 1 => 5 + random.below(4) as u32,
        2..=7 => 1 + random.below(2) as u32,
        _ => 0,
    }
}
