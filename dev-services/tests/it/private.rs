//! Tests of the actions on a private server.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use tidings_testing::{Kafka, KafkaOptions, Postgres, PostgresOptions};

use crate::wire;

fn postgres() -> Postgres {
    Postgres::start(PostgresOptions::new()).expect("Postgres starts")
}

#[test]
fn postgres_that_was_stopped_or_killed_starts_again_with_its_port_and_data() {
    let mut server = postgres();
    let (port, url, first) = (server.port(), server.url(), server.pid());
    assert!(wire::sql(port, "create table kept ()").expect("Postgres answers"));

    server.stop().expect("it stops");
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "nothing listens"
    );
    server.start_again().expect("it starts again");
    assert!(wire::sql(port, "select from kept").expect("Postgres answers"));
    assert!(wire::sql(port, "create table kept_too ()").expect("Postgres answers"));

    server.kill().expect("it is killed");
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "nothing listens"
    );
    server.start_again().expect("it recovers");
    assert!(wire::sql(port, "select from kept, kept_too").expect("Postgres answers"));
    assert_eq!(server.url(), url);
    assert_ne!(server.pid(), first);
    assert!(
        !wire::sql(postgres().port(), "select from kept").expect("Postgres answers"),
        "another server has different data"
    );
}

#[test]
fn kafka_that_was_stopped_or_killed_starts_again_with_its_port_and_data() {
    let mut broker = Kafka::start(KafkaOptions::new()).expect("Kafka starts");
    let (port, brokers, first) = (broker.port(), broker.brokers(), broker.pid());
    assert_eq!(wire::create_topic(port, "kept").expect("Kafka answers"), 0);
    wire::wait_for_topic(port, "kept");

    broker.kill().expect("it is killed");
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "nothing listens"
    );
    broker.start_again().expect("it recovers");
    assert_eq!(
        wire::partitions(port, "kept").expect("Kafka answers"),
        Some(1)
    );

    broker.stop().expect("it stops");
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "nothing listens"
    );
    broker.start_again().expect("it starts again");
    assert_eq!(
        wire::partitions(port, "kept").expect("Kafka answers"),
        Some(1)
    );
    assert_eq!(
        wire::partitions(port, "never").expect("Kafka answers"),
        None
    );
    assert_eq!(broker.brokers(), brokers);
    assert_ne!(broker.pid(), first);
}

#[test]
fn a_paused_server_is_silent_until_it_is_resumed() {
    let mut server = postgres();
    let mut session = wire::session(server.port()).expect("Postgres answers");
    server.pause().expect("it is paused");
    let silent =
        wire::query(&mut session, "select 1").expect_err("a paused server does not respond");
    assert!(
        matches!(
            silent.kind(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
        ),
        "{silent}"
    );
    server.resume().expect("it is resumed");
    // The old session returns the result of the query that it received while it was paused, and of
    // the next one.
    assert!(wire::until_ready(&mut session).expect("the session continues"));
    assert!(wire::query(&mut session, "select 1").expect("the session continues"));

    let mut broker = Kafka::start(KafkaOptions::new()).expect("Kafka starts");
    broker.pause().expect("it is paused");
    assert!(wire::partitions(broker.port(), "any").is_err());
    broker.resume().expect("it is resumed");
    assert_eq!(
        wire::partitions(broker.port(), "any").expect("Kafka answers"),
        None
    );
}

#[test]
fn a_paused_server_is_gone_soon_after_it_is_dropped() {
    let mut server = postgres();
    let (data, port) = (server.data_folder(), server.port());
    server.pause().expect("it is paused");
    let dropped = Instant::now();
    drop(server);
    assert!(!data.exists() && TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(
        dropped.elapsed() < Duration::from_secs(4),
        "{:?}",
        dropped.elapsed()
    );
}

#[test]
fn settings_and_the_socket_reach_postgres() {
    let options = PostgresOptions::new()
        .set("wal_level", "minimal")
        .set("max_wal_senders", "0")
        .fsync(true)
        .unix_socket(true);
    let mut server = Postgres::start(options).expect("Postgres starts");
    let port = server.port();
    let check = "do $$ begin
        assert current_setting('wal_level') = 'minimal' and current_setting('fsync')::bool;
    end $$";
    assert!(wire::sql(port, check).expect("Postgres answers"));
    let socket = server
        .socket_folder()
        .expect("a socket is configured")
        .join(format!(".s.PGSQL.{port}"));
    std::os::unix::net::UnixStream::connect(socket).expect("the socket can be reached");

    assert!(wire::sql(port, "alter system set max_wal_senders = 5").expect("Postgres answers"));
    assert!(wire::sql(port, "alter system set wal_level = replica").expect("Postgres answers"));
    server.stop().expect("it stops");
    server.start_again().expect("it starts again");
    let check = "do $$ begin assert current_setting('wal_level') = 'replica'; end $$";
    assert!(
        wire::sql(port, check).expect("Postgres answers"),
        "ALTER SYSTEM wins over the options"
    );
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let error = Postgres::start(PostgresOptions::new().set("no_such_setting", "1"))
        .expect_err("it refuses")
        .to_string();
    assert!(
        error.contains("Postgres did not start: it exited with code 1")
            && error.contains("no_such_setting"),
        "{error}"
    );
    let error = Kafka::start(KafkaOptions::new().set("process.roles", "none"))
        .expect_err("it refuses")
        .to_string();
    assert!(
        error.contains("Kafka did not start: it exited with code 1")
            && error.contains("process.roles"),
        "{error}"
    );
}

#[test]
fn kafka_has_made_its_own_topics_before_their_first_use() {
    let broker = Kafka::start(KafkaOptions::new()).expect("Kafka starts");
    for own in ["__transaction_state", "__consumer_offsets"] {
        assert_eq!(
            wire::partitions(broker.port(), own).expect("Kafka answers"),
            Some(4),
            "{own}"
        );
    }
}

/// Forwards connections to `port` of 127.0.0.1 to another server until the test ends.
fn impersonate(port: u16, by: SocketAddr) {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    let pass = |mut from: TcpStream, mut to: TcpStream| {
        thread::spawn(move || io::copy(&mut from, &mut to));
    };
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(by) else {
                continue;
            };
            let copies = (client.try_clone(), server.try_clone());
            let (Ok(client_copy), Ok(server_copy)) = copies else {
                continue;
            };
            pass(client, server_copy);
            pass(server, client_copy);
        }
    });
}

#[test]
fn another_server_on_the_port_is_not_taken_for_the_one_that_starts() {
    let (mut broker, other) = (
        Kafka::start(KafkaOptions::new()).expect("Kafka starts"),
        Kafka::start(KafkaOptions::new()).expect("Kafka starts"),
    );
    broker.kill().expect("it is killed");
    impersonate(broker.port(), other.address());
    let error = broker.start_again().expect_err("the port is taken");
    assert!(error.to_string().contains("it exited with code"), "{error}");

    let (mut server, other) = (postgres(), postgres());
    server.kill().expect("it is killed");
    impersonate(server.port(), other.address());
    let error = server.start_again().expect_err("the port is taken");
    assert!(error.to_string().contains("it exited with code"), "{error}");
}
