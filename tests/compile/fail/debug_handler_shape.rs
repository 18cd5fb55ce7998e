use serde::{Deserialize, Serialize};
use tidings::{DomainEvent, debug_handler};
use tidings::subscriber::*;

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPlaced {
    order_id: u64,
}

#[debug_handler]
fn not_async(_: Event<OrderPlaced>) -> Result<(), HandlerError> {
    Ok(())
}

#[debug_handler]
async fn without_arguments() -> Result<(), HandlerError> {
    Ok(())
}

#[debug_handler]
async fn generic<T>(_: Event<OrderPlaced>, _: State<T>) -> Result<(), HandlerError> {
    Ok(())
}

#[debug_handler]
async fn two_states(_: Event<OrderPlaced>, _: State<String>, _: State<u32>) -> Result<(), HandlerError> {
    Ok(())
}

#[debug_handler(stat = u32)]
async fn misspelt(_: Event<OrderPlaced>) -> Result<(), HandlerError> {
    Ok(())
}

fn main() {}
