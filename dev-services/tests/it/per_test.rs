//! One database and one topic per test, on the servers that all tests of the process share.

use std::time::Duration;

use postgres::{Client, NoTls};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tidings_testing::Services;

fn services() -> &'static Services {
    Services::shared().unwrap_or_else(|error| panic!("{error}"))
}

/// Returns the number of databases with a name.
fn databases(name: &str) -> i64 {
    let mut server =
        Client::connect(&services().database_url(), NoTls).expect("the server responds");
    let row = server
        .query_one(
            "select count(*) from pg_database where datname = $1",
            &[&name],
        )
        .expect("the query succeeds");
    row.get(0)
}

#[test]
fn each_test_has_an_empty_database_that_is_dropped_with_its_slots_and_sessions() {
    let (first, second) = (
        services().database().expect("a database"),
        services().database().expect("a database"),
    );
    let mut client = Client::connect(first.url(), NoTls).expect("the database responds");
    client
        .batch_execute("create table orders (id int); insert into orders values (1)")
        .expect("the role may create tables");
    let slot = format!(
        "select pg_create_logical_replication_slot('{}', 'pgoutput')",
        first.name()
    );
    client.batch_execute(&slot).expect("a slot");
    let mut other = Client::connect(second.url(), NoTls).expect("the database responds");
    let found = other.batch_execute("select from orders");
    assert!(found.is_err(), "the other test sees the table");
    let name = first.name().to_owned();
    assert_eq!(databases(&name), 1);
    // The session is still open.
    drop(first);
    assert_eq!(databases(&name), 0);
    assert!(client.batch_execute("select 1").is_err());
}

/// Returns the partitions of a topic, or 0 if it does not exist.
fn partitions(topic: &str) -> usize {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", services().brokers())
        .create()
        .expect("a client");
    let metadata = consumer
        .fetch_metadata(None, Duration::from_secs(30))
        .expect("the broker responds");
    let mut named = metadata.topics().iter().filter(|one| one.name() == topic);
    named.next().map_or(0, |topic| topic.partitions().len())
}

#[test]
fn each_test_has_a_topic_that_is_deleted() {
    let (first, second) = (
        services().topic(3).expect("a topic"),
        services().topic(1).expect("a topic"),
    );
    let (name, other) = (first.name().to_owned(), second.name().to_owned());
    assert_eq!((partitions(&name), partitions(&other)), (3, 1));
    drop(first);
    assert_eq!((partitions(&name), partitions(&other)), (0, 1));
}

#[test]
fn a_database_can_be_requested_by_asynchronous_code() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let database = runtime.block_on(async { services().database() });
    let name = database.expect("a database").name().to_owned();
    assert_eq!(databases(&name), 0);
}
