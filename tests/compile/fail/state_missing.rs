use serde::{Deserialize, Serialize};
use tidings::{Bus, DomainEvent, kafka};
use tidings::subscriber::*;

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPlaced {
    order_id: u64,
}

#[derive(Clone)]
struct App;

async fn reserve(_: Event<OrderPlaced>, _: State<App>) -> Result<(), HandlerError> {
    Ok(())
}

fn main() {
    let bus = Bus::new(kafka::Settings::default());
    let shutdown = tokio_util::sync::CancellationToken::new();
    let _ = bus.subscriber("inventory").on(reserve).run(shutdown);
}
