use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPlaced {
    order_id: u64,
}

async fn publish(outbox: tidings::Outbox, pool: sqlx::PgPool) {
    let _ = outbox.publish(&pool, &OrderPlaced { order_id: 1 }).await;
}

fn main() {}
