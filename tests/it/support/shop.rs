//! A shop for sagas: a database with an outbox, a relay, topics, and services that reply.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidings::relay::{Relay, RelayOptions};
use tidings::saga::{Saga, SagaRun, SagaStatus, Sagas};
use tidings::subscriber::{Event, HandlerError, Retry, Tx};
use tidings::{Bus, DomainEvent, Subscriber, kafka, postgres};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::place::{Running, start, until};
use crate::support::records::create_topic;
use crate::support::services::{TestDatabase, brokers, migrated_database};

macro_rules! events {
    ($($aggregate:literal $Event:ident)*) => {$(
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DomainEvent)]
        #[event(aggregate = $aggregate, id = "order")]
        pub(crate) struct $Event { pub(crate) order: i64 }
    )*};
}

events! {
    "order" OrderPlaced
    "stock" ReserveStock
    "stock" StockReserved
    "stock" StockRefused
    "stock" ReleaseStock
    "payment" TakePayment
    "payment" PaymentTaken
    "payment" PaymentRefused
    "payment" ReturnPayment
    "payment" PaymentReturned
    "payment" PaymentKept
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlaceOrder {
    pub(crate) order: i64,
    pub(crate) reserved: bool,
}

/// Returns a saga of this name whose first step reserves stock.
pub(crate) fn reserving(name: &str) -> Saga<PlaceOrder> {
    Saga::new(name)
        .starts_on::<OrderPlaced>(|placed| PlaceOrder {
            order: placed.order,
            reserved: false,
        })
        .key(|s| s.order.to_string())
        .step("reserve")
        .command(|s: &PlaceOrder| ReserveStock { order: s.order })
        .on::<StockReserved>(|s, _| s.reserved = true)
}

/// Time limit of the step `pay`. It is longer than a busy machine takes for a reply. A test whose
/// service does not reply ends it with [`Shop::let_time_pass`].
pub(crate) const PAY_WITHIN: Duration = Duration::from_secs(1_800);

/// Returns the saga with the steps reserve, pay and confirm. The last digit of the order number
/// selects the behaviour of the services.
pub(crate) fn place_order() -> Saga<PlaceOrder> {
    reserving("place-order")
        .fails_on::<StockRefused>(|_, _| "sold out".into())
        .compensate(|s| ReleaseStock { order: s.order })
        .step("pay")
        .command(|s| TakePayment { order: s.order })
        .on::<PaymentTaken>(|_, _| ())
        .fails_on::<PaymentRefused>(|_, _| "no money".into())
        .compensate(|s| ReturnPayment { order: s.order })
        .compensated_on::<PaymentReturned>(|_, _| ())
        .compensation_fails_on::<PaymentKept>(|_, _| "the bank keeps it".into())
        .timeout(PAY_WITHIN)
        .retry(Retry::exponential(
            2,
            Duration::from_millis(100)..Duration::from_millis(200),
        ))
        .step("confirm")
        .local(confirm)
}

/// Fails for order numbers that end in 8 or 9.
async fn confirm(state: PlaceOrder, mut tx: Tx) -> Result<PlaceOrder, HandlerError> {
    sqlx::query("insert into effect (order_id, what) values ($1, 'confirmed')")
        .bind(state.order)
        .execute(&mut *tx)
        .await?;
    if state.order % 10 >= 8 {
        return Err(HandlerError::dead_letter("not on a Sunday"));
    }
    Ok(state)
}

async fn effect(tx: &mut Tx, order: i64, what: &str) -> Result<(), HandlerError> {
    sqlx::query("insert into effect (order_id, what) values ($1, $2)")
        .bind(order)
        .bind(what)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

pub(crate) type Answer<A, B> = Result<(Option<A>, Option<B>), HandlerError>;

/// Refuses order numbers that end in 1 as sold out.
pub(crate) async fn reserve(
    Event(command): Event<ReserveStock>,
    mut tx: Tx,
) -> Answer<StockReserved, StockRefused> {
    let order = command.order;
    if order % 10 == 1 {
        return Ok((None, Some(StockRefused { order })));
    }
    effect(&mut tx, order, "reserved").await?;
    Ok((Some(StockReserved { order }), None))
}

pub(crate) async fn release(
    Event(command): Event<ReleaseStock>,
    mut tx: Tx,
) -> Result<(), HandlerError> {
    effect(&mut tx, command.order, "released").await
}

/// Refuses order numbers that end in 2 and does not reply to those that end in 3.
pub(crate) async fn pay(
    Event(command): Event<TakePayment>,
    mut tx: Tx,
) -> Answer<PaymentTaken, PaymentRefused> {
    let order = command.order;
    match order % 10 {
        2 => return Ok((None, Some(PaymentRefused { order }))),
        3 => return Ok((None, None)),
        _ => effect(&mut tx, order, "paid").await?,
    }
    Ok((Some(PaymentTaken { order }), None))
}

/// Keeps the payment of order numbers that end in 9.
pub(crate) async fn give_back(
    Event(command): Event<ReturnPayment>,
    mut tx: Tx,
) -> Answer<PaymentReturned, PaymentKept> {
    let order = command.order;
    if order % 10 == 9 {
        return Ok((None, Some(PaymentKept { order })));
    }
    effect(&mut tx, order, "returned").await?;
    Ok((Some(PaymentReturned { order }), None))
}

/// A database, a relay and the topics of one test.
pub(crate) struct Shop {
    pub(crate) database: TestDatabase,
    pub(crate) bus: Bus,
    pub(crate) sagas: Sagas,
    id: String,
    shutdown: CancellationToken,
    running: Vec<JoinHandle<()>>,
}

impl Shop {
    pub(crate) async fn open() -> Self {
        let (database, id) = (
            migrated_database().await,
            Uuid::now_v7().simple().to_string(),
        );
        sqlx::query("create table effect (order_id bigint, what text)")
            .execute(&database.pool)
            .await
            .expect("a new table");
        let settings = kafka::Settings {
            brokers: brokers(),
            ..kafka::Settings::default()
        };
        let mut shop = Self {
            bus: Bus::new(settings.clone()),
            sagas: Sagas::new(database.pool.clone()),
            id,
            shutdown: CancellationToken::new(),
            running: Vec::new(),
            database,
        };
        for aggregate in ["order", "stock", "payment", "saga"] {
            create_topic(&brokers(), &shop.topic(aggregate), 2).await;
        }
        let mut options = RelayOptions::new(
            postgres::DatabaseSettings::parse(&shop.database.url).expect("a URL"),
            settings,
        );
        options.trace = true;
        options.name = format!("r{}", &shop.id);
        options.topic = format!("{}-{{aggregatetype}}", shop.id);
        let relay = Relay::new(options)
            .expect("a relay")
            .run(shop.shutdown.clone());
        shop.running
            .push(tokio::spawn(async move { drop(relay.await) }));
        shop
    }

    /// Starts the services that receive commands.
    pub(crate) fn serve(&mut self) {
        self.serve_stock();
        self.serve_payments();
    }

    pub(crate) fn serve_stock(&mut self) {
        let inventory = self
            .subscriber("inventory")
            .on(reserve)
            .on(release)
            .inbox(self.database.pool.clone());
        let stop = self.shutdown.clone();
        self.running.push(tokio::spawn(async move {
            inventory
                .concurrency(2)
                .run(stop)
                .await
                .expect("the subscriber ends without an error")
        }));
    }

    pub(crate) fn serve_payments(&mut self) {
        let payments = self
            .subscriber("payments")
            .on(pay)
            .on(give_back)
            .inbox(self.database.pool.clone());
        let stop = self.shutdown.clone();
        self.running.push(tokio::spawn(async move {
            payments
                .concurrency(2)
                .run(stop)
                .await
                .expect("the subscriber ends without an error")
        }));
    }

    pub(crate) fn subscriber(&self, group: &str) -> Subscriber<()> {
        self.bus
            .subscriber(format!("{}-{group}", self.id))
            .topic::<OrderPlaced>(self.topic("order"))
            .topic::<StockReserved>(self.topic("stock"))
            .topic::<PaymentTaken>(self.topic("payment"))
    }

    /// Starts a replica of the service that runs this saga. Returns the token that stops it.
    pub(crate) fn run(&mut self, saga: Saga<PlaceOrder>) -> CancellationToken {
        let stop = self.shutdown.child_token();
        let subscriber = self
            .subscriber("orders")
            .saga(saga)
            .inbox(self.database.pool.clone())
            .concurrency(2);
        let running = subscriber.run(stop.clone());
        self.running.push(tokio::spawn(async move {
            running.await.expect("the subscriber ends without an error")
        }));
        stop
    }

    /// Starts a version of the service that runs this saga. The test stops it.
    pub(crate) fn deploy(&self, saga: Saga<PlaceOrder>) -> Running {
        start!(
            self.subscriber("orders")
                .saga(saga)
                .inbox(self.database.pool.clone())
                .concurrency(2)
        )
    }

    /// Waits until the saga of this order exists.
    pub(crate) async fn until_started(&self, order: i64) -> SagaRun {
        until(&format!("order {order} has a saga"), async || {
            let key = order.to_string();
            let found = self.sagas.find("place-order", &key).await;
            found.expect("the saga can be read")
        })
        .await
    }

    /// Waits until the saga of this order has ended.
    pub(crate) async fn until_ended(&self, order: i64) -> SagaRun {
        until(&format!("order {order} has ended"), async || {
            let run = self
                .sagas
                .find("place-order", &order.to_string())
                .await
                .expect("the saga can be read")?;
            run.status.is_end().then_some(run)
        })
        .await
    }

    /// Waits until the saga of this order is at this step.
    pub(crate) async fn until_at(&self, order: i64, step: &str) -> SagaRun {
        until(&format!("order {order} stands at {step}"), async || {
            let run = self
                .sagas
                .find("place-order", &order.to_string())
                .await
                .expect("the saga can be read")?;
            (run.status == SagaStatus::Running && run.step.as_deref() == Some(step)).then_some(run)
        })
        .await
    }

    /// Ends the wait for the reply to this attempt of the step `pay`, as if its time limit had
    /// passed.
    pub(crate) async fn let_time_pass(&self, order: i64, attempt: usize) {
        until(&format!("order {order} waits for its reply"), async || {
            let run = self.until_at(order, "pay").await;
            let sent = run
                .commands
                .iter()
                .filter(|command| command.step == "pay" && !command.is_compensation);
            // The time before the next attempt is shorter than the limit.
            let waits = run
                .due_at
                .is_some_and(|due| due > run.updated_at + PAY_WITHIN / 2);
            (waits && sent.count() == attempt).then_some(())
        })
        .await;
        let due = "update tidings.saga set due_at = now(), \
            progress = jsonb_set(progress, '{current,due}', to_jsonb(now())) where key = $1";
        sqlx::query(due)
            .bind(order.to_string())
            .execute(&self.database.pool)
            .await
            .expect("the statement succeeds");
    }

    /// Returns the types of the events in the table `subscriber_parked`.
    pub(crate) async fn parked(&self) -> Vec<String> {
        let sql = "select convert_from(header_values[array_position(header_names, 'ce_type')], \
            'UTF8') from tidings.subscriber_parked order by seq";
        sqlx::query_scalar(sql)
            .fetch_all(&self.database.pool)
            .await
            .expect("the query succeeds")
    }

    pub(crate) async fn place(&self, orders: impl IntoIterator<Item = i64>) {
        for order in orders {
            let mut conn = self.database.pool.acquire().await.expect("a connection");
            tidings::Outbox::new()
                .allow_autocommit()
                .publish(&mut conn, &OrderPlaced { order })
                .await
                .expect("the event is published");
        }
    }

    /// Waits until the saga of this order has this status.
    pub(crate) async fn until(&self, order: i64, status: SagaStatus) -> SagaRun {
        until(&format!("order {order} is {status:?}"), async || {
            let run = self
                .sagas
                .find("place-order", &order.to_string())
                .await
                .expect("the saga can be read")?;
            (run.status == status).then_some(run)
        })
        .await
    }

    /// Returns the recorded effects of an order, in order.
    pub(crate) async fn effects(&self, order: i64) -> Vec<String> {
        let sql = "select what from effect where order_id = $1";
        sqlx::query_scalar(sql)
            .bind(order)
            .fetch_all(&self.database.pool)
            .await
            .expect("the query succeeds")
    }

    /// Waits until exactly these effects are recorded, in any order.
    pub(crate) async fn until_effects(&self, order: i64, expected: &[&str]) {
        until(&format!("order {order} has {expected:?}"), async || {
            let mut found = self.effects(order).await;
            found.sort_unstable();
            let mut expected = expected.to_vec();
            expected.sort_unstable();
            (found == expected).then_some(())
        })
        .await;
    }

    pub(crate) async fn close(self) {
        self.shutdown.cancel();
        for running in self.running {
            running.await.expect("the task does not panic");
        }
    }

    pub(crate) fn topic(&self, aggregate: &str) -> String {
        format!("{}-{aggregate}", self.id)
    }
}
