//! The admin port of a relay while clients keep idle connections open.

use std::net::TcpStream;
use std::process::{Command, Stdio};

use super::{Running, relay_name};
use crate::support::eventually::until_blocking;
use crate::support::services::{brokers, migrated_database};

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_with_few_descriptors_is_alive_and_delivers_behind_many_idle_connections() {
    let database = migrated_database().await;
    let topic = format!("cli-{}", uuid::Uuid::now_v7().simple());
    let mut command = Command::new("sh");
    let relay = r#"ulimit -n 256 && exec "$0" relay --name "$2" --create-topics --topic "$1" \
        --listen 127.0.0.1:0 --log-format json"#;
    command
        .args([
            "-c",
            relay,
            env!("CARGO_BIN_EXE_tidings"),
            &topic,
            &relay_name(),
        ])
        .env_clear()
        .stdin(Stdio::null());
    command
        .env("DATABASE_URL", &database.url)
        .env("KAFKA_BROKERS", brokers());
    let relay = Running::start(command);
    let idle: Vec<_> = (0..342)
        .map(|_| TcpStream::connect(&relay.admin).expect("the port listens"))
        .collect();
    assert!(relay.get("/health/live").starts_with("HTTP/1.1 200"));
    until_blocking("ready", || {
        relay
            .get("/health/ready")
            .starts_with("HTTP/1.1 200")
            .then_some(())
    });
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
        values ('order', '1', 'T', '{}')";
    sqlx::query(insert)
        .execute(&database.pool)
        .await
        .expect("an event can be inserted");
    let published = format!("topic=\"{topic}\"");
    until_blocking("the event is published", || {
        relay.get("/metrics").contains(&published).then_some(())
    });
    drop(idle);
    let (code, log) = relay.stop("TERM");
    assert_eq!(code, 0, "{log}");
}
