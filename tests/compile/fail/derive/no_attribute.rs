use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
struct OrderPlaced {
    order_id: u64,
}

fn main() {}
