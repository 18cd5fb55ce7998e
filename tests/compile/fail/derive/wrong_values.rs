use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "or der", id = "order_id")]
struct Aggregate {
    order_id: u64,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = order_id)]
struct Unquoted {
    order_id: u64,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = 0)]
struct Number(u64);

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id", version = 0)]
struct Version {
    order_id: u64,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id", type = "")]
struct Type {
    order_id: u64,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", aggregate = "cart", id = "order_id")]
struct Twice {
    order_id: u64,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id)]
struct NoValue {
    order_id: u64,
}

fn main() {}
