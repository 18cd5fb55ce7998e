#[derive(serde::Serialize, tidings::DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPlaced {
    order_id: u64,
}

fn main() {}
