//! A subscriber can be built in any order of its calls.

use serde::{Deserialize, Serialize};
use tidings::subscriber::*;
use tidings::{Bus, DomainEvent, kafka};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPlaced {
    order_id: u64,
}

#[derive(Clone)]
struct App {
    name: String,
}

impl FromRef<App> for String {
    fn from_ref(app: &App) -> Self {
        app.name.clone()
    }
}

#[debug_handler]
async fn reserve(_: Event<OrderPlaced>, _: Meta, _: Tx, _: State<App>) -> Result<(), HandlerError> {
    Ok(())
}

#[debug_handler(state = App)]
async fn release(
    _: Event<OrderPlaced>,
    State(_): State<String>,
) -> Result<Option<OrderPlaced>, sqlx::Error> {
    Ok(None)
}

#[debug_handler]
async fn plain(_: Event<OrderPlaced>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    Ok(())
}

fn pool() -> sqlx::PgPool {
    sqlx::PgPool::connect_lazy("postgres://localhost/shop").unwrap()
}

fn main() {
    let bus = Bus::new(kafka::Settings::default());
    let shutdown = tokio_util::sync::CancellationToken::new();
    let app = || App {
        name: String::new(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let _ = bus
        .subscriber("inventory")
        .on(reserve)
        .on(release)
        .inbox(pool())
        .state(app())
        .run(shutdown.clone());
    let _ = bus
        .subscriber("inventory")
        .state(app())
        .inbox(pool())
        .on(reserve)
        .on(release)
        .run(shutdown.clone());
    let _ = bus
        .subscriber("inventory")
        .inbox(pool())
        .on(release)
        .state(app())
        .on(plain)
        .run(shutdown.clone());
    let _ = bus
        .subscriber("inventory")
        .on(plain)
        .layer(tower::timeout::TimeoutLayer::new(
            std::time::Duration::from_secs(1),
        ))
        .run(shutdown);
}
