//! A backlog with events that a topic refuses: one in a hundred, each of another aggregate.
//!
//! The same backlog is drained to a topic that accepts everything. The rounds alternate.

use std::time::{Duration, Instant};

use sqlx::AssertSqlSafe;

use crate::{
    harness::{
        Outcome,
        outbox::{Backlog, Outbox},
        servers::Servers,
        tidings::{Mode, Tidings},
        topic,
    },
    options::Sized,
};

/// `max.message.bytes` of the topic that refuses records, and the approximate size of those
/// records.
const LIMIT: u32 = 65_536;
const LARGE: u32 = 80_000;

/// One in `EVERY` events is refused.
const EVERY: u64 = 100;

/// Loads a backlog as the harness does. Every hundredth event belongs to another aggregate, is
/// large and does not compress.
const LOAD: &str = "
create or replace procedure load_poisoned(
  n bigint, per_tx bigint, pad int, keys int, every bigint, large int
) language plpgsql as $$
declare
  i bigint := 0;
  noise text := (select string_agg(md5(k::text), '') from generate_series(1, large / 32) k);
begin
  while i < n loop
    insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
    select 'order', case when g % every = 0 then 'large-' || g else (g % keys)::text end,
           'OrderPlaced',
           json_build_object(
             'n', g, 'pad', case when g % every = 0 then noise else repeat('x', pad) end
           )
      from generate_series(i, least(i + per_tx, n) - 1) g;
    commit;
    i := i + per_tx;
  end loop;
end $$";

/// Runs the rounds and prints the figures.
pub(crate) async fn run(
    rounds: usize,
    servers: &Servers,
    tidings: &Tidings,
    sized: Sized,
) -> Outcome<()> {
    let Backlog {
        events,
        per_tx,
        pad,
    } = sized.backlog;
    let refused = events.div_ceil(EVERY);
    println!("\npoison: loading {events} events; a topic refuses {refused} of them as too large");
    let mut outbox = Outbox::create(servers, "bench_poison", tidings).await?;
    sqlx::raw_sql(LOAD).execute(&mut outbox.session).await?;
    outbox
        .load_with(&format!(
            "call load_poisoned({events}, {per_tx}, {pad}, 20000, {EVERY}, {LARGE})"
        ))
        .await?;
    let (mut plain, mut poisoned) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let rate = drain(servers, &mut outbox, tidings, None, events, 0).await?;
        println!("  round {round}: all accepted        {rate:>9.0} events/s");
        plain.push(rate);
        let rate = drain(
            servers,
            &mut outbox,
            tidings,
            Some(LIMIT),
            events - refused,
            refused,
        )
        .await?;
        println!("  round {round}: one in {EVERY} refused {rate:>9.0} events/s");
        poisoned.push(rate);
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let (plain, poisoned) = (median(&mut plain), median(&mut poisoned));
    println!(
        "\n| poison: valid events/s | all accepted | one in {EVERY} refused | ratio | goal |\
         \n|---|---|---|---|---|"
    );
    println!(
        "| | {plain:.0} | {poisoned:.0} | {:.2} | ≥ 0.5 |",
        poisoned / plain
    );
    // The outbox cannot be truncated while events are parked.
    sqlx::raw_sql("delete from tidings.parked")
        .execute(&mut outbox.session)
        .await?;
    outbox.finish().await
}

/// Returns the valid events per second, from the start of the process until all of them are
/// published and the refused ones are parked.
async fn drain(
    servers: &Servers,
    outbox: &mut Outbox,
    tidings: &Tidings,
    limit: Option<u32>,
    valid: u64,
    refused: u64,
) -> Outcome<f64> {
    let (brokers, topic) = (servers.kafka.brokers(), "bench.poison");
    sqlx::raw_sql("delete from tidings.parked")
        .execute(&mut outbox.session)
        .await?;
    outbox.rewind_tidings().await?;
    let limit = limit.map(|bytes| bytes.to_string());
    let settings: Vec<(&str, &str)> = limit
        .iter()
        .map(|bytes| ("max.message.bytes", bytes.as_str()))
        .collect();
    topic::create_with(&brokers, topic, &settings).await?;
    let published = "select coalesce(max(published), 0) from tidings.relay";
    let before: i64 = sqlx::query_scalar(published)
        .fetch_one(&mut outbox.session)
        .await?;
    let relay = tidings.start(&outbox.url, topic, Mode::Default)?;
    let start = Instant::now();
    loop {
        let now: i64 = sqlx::query_scalar(published)
            .fetch_one(&mut outbox.session)
            .await?;
        let parked = "select count(*) from tidings.parked where reason is not null";
        let parked: i64 = sqlx::query_scalar(AssertSqlSafe(parked))
            .fetch_one(&mut outbox.session)
            .await?;
        if (now - before).cast_unsigned() >= valid && parked.cast_unsigned() == refused {
            break;
        }
        relay.still_runs()?;
        if start.elapsed() > Duration::from_secs(600) {
            return Err(format!(
                "{} of {valid} events are published and {parked} of {refused} are parked",
                now - before
            )
            .into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let seconds = start.elapsed().as_secs_f64();
    relay.stop()?;
    topic::delete(&brokers, topic).await?;
    Ok(valid as f64 / seconds)
}
