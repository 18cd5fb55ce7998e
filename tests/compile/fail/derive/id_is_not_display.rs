use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPlaced {
    order_id: Option<u64>,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = self.order_id)]
struct OrderCancelled {
    order_id: Option<u64>,
}

fn main() {}
