use serde::{Deserialize, Serialize};
use serde_json::Value;

fn same(old: Value) -> Value {
    old
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id", version = 2, upcast(from = 2, with = same))]
struct NotOlder {
    order_id: u64,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(
    aggregate = "order",
    id = "order_id",
    version = 2,
    upcast(from = 1, with = same),
    upcast(from = 1, with = same)
)]
struct Twice {
    order_id: u64,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id", version = 2, upcast(from = 1))]
struct Incomplete {
    order_id: u64,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id", version = 2, upcast = same)]
struct Misspelt {
    order_id: u64,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id", version = 3, upcast(from = 1, with = same))]
struct Gap {
    order_id: u64,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(
    aggregate = "order",
    id = "order_id",
    version = 9,
    upcast(from = 8, with = same),
    upcast(from = 1, with = same)
)]
enum WideGap {
    Placed { order_id: u64 },
}

fn main() {}
