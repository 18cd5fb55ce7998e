//! A table made for Debezium's EventRouter, read as it is, and the real Debezium for comparison.

mod alone;
mod cases;
mod connector;
mod hand_over;
mod recorded;
mod records;
mod undeliverable;

use sqlx::{AssertSqlSafe, PgPool};
use tidings::relay::{DebeziumOutbox, EnvelopeFormat, OnUndeliverable, RelayOptions};

use crate::support::running::Place;

/// A table with Debezium's default columns.
const TABLE: &str = "create table public.outboxevent (
    id uuid primary key default gen_random_uuid(), aggregatetype varchar(255) not null, \
    aggregateid varchar(255) not null,
    type varchar(255) not null, payload text)";

/// Returns the options of a relay that reads `public.outboxevent`.
fn options(place: &Place) -> RelayOptions {
    let mut options = place.options();
    options.debezium = Some(DebeziumOutbox::new("public", "outboxevent"));
    options.envelope = EnvelopeFormat::Debezium;
    options.undeliverable.policy = OnUndeliverable::Stop;
    options
}

/// Inserts the events of a range for one aggregate, one per transaction.
async fn insert(pool: &PgPool, aggregate: &str, range: std::ops::Range<u32>) {
    for n in range {
        let sql = format!(
            "insert into public.outboxevent (aggregatetype, aggregateid, type, payload) \
             values ('order', '{aggregate}', 'T', '{n}')"
        );
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(pool)
            .await
            .expect("the insert succeeds");
    }
}
