use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(id = "order_id")]
struct OrderPlaced {
    order_id: u64,
}

fn main() {}
