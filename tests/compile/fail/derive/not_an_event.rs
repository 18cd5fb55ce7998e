use serde::{Deserialize, Serialize};

#[derive(tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
union Union {
    order_id: u64,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
enum Empty {}

#[derive(Serialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct Borrowed<'a> {
    order_id: &'a str,
}

fn main() {}
