struct OrderPlaced {
    order_id: u64,
}

async fn publish(outbox: tidings::Outbox, mut tx: sqlx::PgTransaction<'_>) {
    outbox.publish(&mut tx, &OrderPlaced { order_id: 1 }).await;
}

fn main() {}
