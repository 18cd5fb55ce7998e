//! Code that the examples share: the event, and a database to try them with.

use serde::{Deserialize, Serialize};
use tidings::DomainEvent;

/// Something that happened to an order.
#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
pub struct OrderPlaced {
    pub order_id: i64,
    pub total_cents: i64,
}

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A database with the tables of Tidings and of the shop.
pub struct Database {
    pub url: String,
    pool: sqlx::PgPool,
    _server: Option<dev_services::Postgres>,
}

impl Database {
    /// Connects to `DATABASE_URL`, or starts a server that ends with the example.
    pub async fn open() -> Result<Self, Failure> {
        let (url, server) = match std::env::var("DATABASE_URL") {
            Ok(url) => (url, None),
            Err(_) => {
                let start = || dev_services::Postgres::start(dev_services::PostgresOptions::new());
                let server = tokio::task::spawn_blocking(start).await??;
                (server.url(), Some(server))
            }
        };
        let pool = sqlx::PgPool::connect(&url).await?;
        // A service with another driver runs `tidings migrate` instead.
        tidings::migrate(&pool).await?;
        let tables = "create table if not exists orders (id bigint primary key, total_cents bigint not null);
                      create table if not exists reservation (order_id bigint primary key)";
        sqlx::raw_sql(tables).execute(&pool).await?;
        Ok(Self {
            url,
            pool,
            _server: server,
        })
    }

    /// Prints the events in the outbox.
    pub async fn show(&self) -> Result<(), Failure> {
        let rows: Vec<(String, String, String)> = sqlx::query_as(
            "select type, aggregateid, payload::text from tidings.outbox order by seq",
        )
        .fetch_all(&self.pool)
        .await?;
        for (event_type, order, payload) in rows {
            println!("{event_type} of order {order}: {payload}");
        }
        Ok(())
    }
}
