use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(agregate = "order", id = "order_id")]
struct Misspelt {
    order_id: u64,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", key = "order_id")]
struct Synonym {
    order_id: u64,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id", colour = "red")]
struct Unheard {
    order_id: u64,
}

fn main() {}
