use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order")]
struct OrderPlaced {
    order_id: u64,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order")]
enum OrderEvent {
    #[event(id = "order_id")]
    Placed { order_id: u64 },
    Cancelled { order_id: u64 },
}

fn main() {}
