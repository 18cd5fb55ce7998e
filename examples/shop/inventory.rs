//! Inventory: reserves and releases stock.

use axum::Router;
use tidings::subscriber::{Event, HandlerError, State, Tx};
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::events::{ReleaseStock, ReserveStock, StockRefused, StockReserved};
use super::service::{Broken, Service};

const TABLES: &str = "
create table if not exists stock (
    article text primary key, delivered int not null,
    available int not null check (available >= 0)
);
create table if not exists reservation (
    order_id uuid primary key, article text not null, quantity int not null,
    released boolean not null default false
);
insert into stock select article, pieces, pieces from (
    values ('teapot', 1000000), ('kettle', 1000000), ('spoon', 1000000), ('unicorn', 20)
) a (article, pieces)
on conflict do nothing;";

pub(crate) async fn main() -> Result<(), Failure> {
    let service = Service::start("inventory", TABLES).await?;
    let handling = service
        .subscriber()
        .on(reserve)
        .on(release)
        .state(service.broken.clone())
        .run(CancellationToken::new());
    service.run(Router::new(), handling).await
}

async fn reserve(
    Event(command): Event<ReserveStock>,
    State(broken): State<Broken>,
    mut tx: Tx,
) -> Result<(Option<StockReserved>, Option<StockRefused>), HandlerError> {
    let ReserveStock {
        order_id,
        article,
        quantity,
    } = command;
    if broken.is_set() {
        return Ok((
            None,
            Some(StockRefused {
                order_id,
                reason: "the forklift is out of order".into(),
            }),
        ));
    }
    let take = "update stock set available = available - $2 where article = $1 and available >= $2";
    if sqlx::query(take)
        .bind(&article)
        .bind(quantity)
        .execute(&mut *tx)
        .await?
        .rows_affected()
        == 0
    {
        return Ok((
            None,
            Some(StockRefused {
                order_id,
                reason: format!("no {quantity} of {article} left"),
            }),
        ));
    }
    let reserve = "insert into reservation (order_id, article, quantity) values ($1, $2, $3)";
    sqlx::query(reserve)
        .bind(order_id)
        .bind(article)
        .bind(quantity)
        .execute(&mut *tx)
        .await?;
    Ok((Some(StockReserved { order_id }), None))
}

async fn release(
    Event(ReleaseStock { order_id }): Event<ReleaseStock>,
    mut tx: Tx,
) -> Result<(), HandlerError> {
    let release = "with released as (
            update reservation set released = true where order_id = $1 and not released
            returning article, quantity
        )
        update stock s set available = available + r.quantity
        from released r where s.article = r.article";
    sqlx::query(release)
        .bind(order_id)
        .execute(&mut *tx)
        .await?;
    Ok(())
}
