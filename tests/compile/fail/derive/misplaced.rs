use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OnField {
    #[event(id)]
    order_id: u64,
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id", type = "Order")]
enum TypeOnEnum {
    Placed { order_id: u64 },
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
enum VersionOnVariant {
    #[event(version = 2)]
    Placed { order_id: u64 },
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order")]
enum ExpressionOnVariant {
    #[event(id = self.id())]
    Placed { order_id: u64 },
}

#[derive(Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
enum SameName {
    Placed { order_id: u64 },
    #[event(type = "Placed")]
    PlacedAgain { order_id: u64 },
}

fn main() {}
