use serde::{Deserialize, Serialize};
use tidings::{DomainEvent, debug_handler};
use tidings::subscriber::*;

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPlaced {
    order_id: u64,
}

#[debug_handler]
async fn not_an_argument(_: Event<OrderPlaced>, _: Meta, _: String) -> Result<(), HandlerError> {
    Ok(())
}

#[debug_handler]
async fn no_event_first(_: Meta, _: Event<OrderPlaced>) -> Result<(), HandlerError> {
    Ok(())
}

#[debug_handler]
async fn returns_nothing(_: Event<OrderPlaced>) {}

#[debug_handler]
async fn returns_no_event(_: Event<OrderPlaced>) -> Result<u32, HandlerError> {
    Ok(1)
}

#[debug_handler]
async fn not_send(_: Event<OrderPlaced>) -> Result<(), HandlerError> {
    let count = std::rc::Rc::new(1);
    std::future::ready(()).await;
    drop(count);
    Ok(())
}

#[debug_handler(state = u32)]
async fn part_of_another_state(_: Event<OrderPlaced>, _: State<String>) -> Result<(), HandlerError> {
    Ok(())
}

fn main() {}
