use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "ordr_id")]
struct OrderPlaced {
    order_id: u64,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
enum OrderEvent {
    Placed { order_id: u64 },
    Cancelled { order: u64 },
}

fn main() {}
