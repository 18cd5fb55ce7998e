//! A subscriber whose handler writes with tokio-postgres. The handler records the event in its own
//! transaction, so its effect happens once although the event is delivered twice.

mod shop;

use std::{sync::Arc, time::Duration};

use dev_services::{Kafka, KafkaOptions};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
};
use shop::{Failure, OrderPlaced};
use tidings::{
    Bus, Outbox,
    event::Envelope,
    kafka::Settings,
    outbox::{Parameter, Statement},
    subscriber::{Event, HandlerError, InboxStatements, Meta, State},
};
use tokio::sync::Mutex;
use tokio_postgres::{
    Client, NoTls, Transaction,
    types::{ToSql, Type},
};
use tokio_util::sync::CancellationToken;

#[derive(Clone)]
struct App {
    client: Arc<Mutex<Client>>,
    inbox: InboxStatements,
    outbox: Outbox,
}

async fn reserve(
    Event(order): Event<OrderPlaced>,
    meta: Meta,
    State(app): State<App>,
) -> Result<(), HandlerError> {
    let mut client = app.client.lock().await;
    let tx = client.transaction().await.map_err(HandlerError::retry)?;
    let record = app.inbox.record(&meta)?;
    let rows = execute(&tx, &record.statement()).await;
    if !record.is_new(rows.map_err(HandlerError::retry)?)? {
        println!("order {} was handled before", order.order_id);
        return Ok(());
    }
    let insert = "insert into reservation (order_id) values ($1)";
    tx.execute(insert, &[&order.order_id])
        .await
        .map_err(HandlerError::retry)?;
    let mut reserved = Envelope::of(&order)?;
    reserved.event_type = "StockReserved".into();
    meta.cause(&mut reserved);
    app.outbox.publish_envelope(&tx, &reserved).await?;
    tx.commit().await.map_err(HandlerError::retry)?;
    println!("order {} is reserved", order.order_id);
    Ok(())
}

/// Executes a statement of the inbox.
async fn execute(
    tx: &Transaction<'_>,
    statement: &Statement<'_>,
) -> Result<u64, tokio_postgres::Error> {
    let values: Vec<(Box<dyn ToSql + Sync + Send>, Type)> = statement
        .parameters()
        .iter()
        .map(|parameter| -> (Box<dyn ToSql + Sync + Send>, Type) {
            match parameter {
                Parameter::Text(text) => (Box::new(text.as_deref().map(str::to_owned)), Type::TEXT),
                Parameter::BigInt(number) => (Box::new(*number), Type::INT8),
                other => unreachable!("{other:?} is a parameter of other statements"),
            }
        })
        .collect();
    let values: Vec<(&(dyn ToSql + Sync), Type)> = values
        .iter()
        .map(|(value, ty)| (&**value as &(dyn ToSql + Sync), ty.clone()))
        .collect();
    tx.execute_typed(statement.sql(), &values).await
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let database = shop::Database::open().await?;
    let start = || Kafka::start(KafkaOptions::new());
    let kafka = tokio::task::spawn_blocking(start).await??;
    let admin: AdminClient<_> = ClientConfig::new()
        .set("bootstrap.servers", kafka.brokers())
        .create()?;
    let topic = NewTopic::new("order", 4, TopicReplication::Fixed(1));
    admin.create_topics([&topic], &AdminOptions::new()).await?;
    let bus = Bus::new(Settings {
        brokers: kafka.brokers(),
        ..Settings::default()
    });
    let (client, connection) = tokio_postgres::connect(&database.url, NoTls).await?;
    tokio::spawn(connection);
    let app = App {
        client: Arc::new(Mutex::new(client)),
        inbox: InboxStatements::new("stock"),
        outbox: Outbox::new(),
    };

    let placed = Envelope::of(&OrderPlaced {
        order_id: 7,
        total_cents: 1999,
    })?;
    bus.publish_envelope(&placed).await?;
    bus.publish_envelope(&placed).await?;

    let subscriber = bus.subscriber("stock").on(reserve).state(app);
    let (statistics, shutdown) = (subscriber.statistics(), CancellationToken::new());
    let running = tokio::spawn(subscriber.run(shutdown.clone()));
    while statistics.handled() < 2 && !running.is_finished() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shutdown.cancel();
    running.await??;
    database.show().await
}
