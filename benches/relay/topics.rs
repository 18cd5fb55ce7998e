//! A backlog for 2,000 existing topics, one in turn with another.
//!
//! The same backlog is drained to a single topic. The rounds alternate. The difference is the time
//! to find the topics and to send the first record to each.

use std::time::{Duration, Instant};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
};
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

/// Number of topics, each with one partition.
const TOPICS: u64 = 2_000;

/// Number of topics that one request creates.
const AT_ONCE: usize = 200;

/// Prefix of the topics' names.
const PREFIX: &str = "bench.many.";

/// Time limit of a drain.
const PATIENCE: Duration = Duration::from_secs(300);

/// Loads a backlog whose successive events have different types of aggregates.
const LOAD: &str = "
create or replace procedure load_many(n bigint, per_tx bigint, pad int, types bigint)
language plpgsql as $$
declare i bigint := 0;
begin
  while i < n loop
    insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
    select 'type-' || g % types, g::text, 'OrderPlaced',
           json_build_object('n', g, 'pad', repeat('x', pad))
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
    println!("\ntopics: loading {events} events for {TOPICS} topics");
    let mut outbox = Outbox::create(servers, "bench_topics", tidings).await?;
    sqlx::raw_sql(LOAD).execute(&mut outbox.session).await?;
    outbox
        .load_with(&format!(
            "call load_many({events}, {per_tx}, {pad}, {TOPICS})"
        ))
        .await?;
    let brokers = servers.kafka.brokers();
    create_topics(&brokers).await?;
    let (mut one, mut many) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        topic::create(&brokers, "bench.one").await?;
        let seconds = drain(&mut outbox, tidings, "bench.one", events).await?;
        topic::delete(&brokers, "bench.one").await?;
        println!("  round {round}: one topic    {seconds:>6.1} s");
        one.push(seconds);
        let template = format!("{PREFIX}{{aggregatetype}}");
        let seconds = drain(&mut outbox, tidings, &template, events).await?;
        println!("  round {round}: {TOPICS} topics {seconds:>6.1} s");
        many.push(seconds);
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (one, many) = (median(&mut one), median(&mut many));
    println!(
        "\n| topics: {events} events | one topic | {TOPICS} topics | difference |\
         \n|---|---|---|---|\n| | {one:.1} s | {many:.1} s | {:.1} s |",
        many - one
    );
    outbox.finish().await
}

async fn create_topics(brokers: &str) -> Outcome<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    let names: Vec<String> = (0..TOPICS).map(|n| format!("{PREFIX}type-{n}")).collect();
    for names in names.chunks(AT_ONCE) {
        let new: Vec<NewTopic<'_>> = names
            .iter()
            .map(|name| NewTopic::new(name, 1, TopicReplication::Fixed(1)))
            .collect();
        for created in admin.create_topics(&new, &AdminOptions::new()).await? {
            created.map_err(|(topic, error)| format!("creating {topic}: {error}"))?;
        }
    }
    Ok(())
}

/// Returns the seconds from the start of the process until all events are published.
async fn drain(outbox: &mut Outbox, tidings: &Tidings, topic: &str, events: u64) -> Outcome<f64> {
    outbox.rewind_tidings().await?;
    let published = "select coalesce(max(published), 0) from tidings.relay";
    let before: i64 = sqlx::query_scalar(published)
        .fetch_one(&mut outbox.session)
        .await?;
    let relay = tidings.start(&outbox.url, topic, Mode::Default)?;
    let start = Instant::now();
    loop {
        let now: i64 = sqlx::query_scalar(AssertSqlSafe(published))
            .fetch_one(&mut outbox.session)
            .await?;
        if (now - before).cast_unsigned() >= events {
            break;
        }
        relay.still_runs()?;
        if start.elapsed() > PATIENCE {
            return Err(format!("{} of {events} events are published", now - before).into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let seconds = start.elapsed().as_secs_f64();
    relay.stop()?;
    Ok(seconds)
}
