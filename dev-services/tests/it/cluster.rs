//! Tests of a cluster of three brokers, and of a broker behind a proxy.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use tidings_testing::{Kafka, KafkaCluster, KafkaOptions};

use crate::wire;

const TOPIC_ALREADY_EXISTS: i16 = 36;

fn until(what: &str, done: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < limit, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn any_one_of_three_brokers_may_go_and_come_back() {
    let mut cluster = KafkaCluster::start(KafkaOptions::new()).expect("three brokers start");
    assert_eq!(cluster.brokers().split(',').count(), KafkaCluster::BROKERS);
    let ports: Vec<_> = (0..3).map(|number| cluster.broker(number).port()).collect();
    assert_eq!(
        wire::create_replicated_topic(ports[0], "kept", 3).expect("Kafka answers"),
        0
    );
    for gone in 0..3 {
        match gone {
            0 => cluster.broker(gone).kill().expect("it is killed"),
            1 => cluster.broker(gone).stop().expect("it stops"),
            _ => cluster.broker(gone).pause().expect("it is paused"),
        }
        let other = ports[(gone + 1) % 3];
        until("kept known", || {
            matches!(wire::partitions(other, "kept"), Ok(Some(1)))
        });
        let topic = format!("without-{gone}");
        // Retries until a new controller is elected and the missing broker is detected. The
        // controller may choose that broker for a replica until then.
        until(&format!("{topic} made"), || {
            matches!(
                wire::create_replicated_topic(other, &topic, 2),
                Ok(0 | TOPIC_ALREADY_EXISTS)
            )
        });
        cluster.broker(gone).resume().expect("it is resumed");
        if gone < 2 {
            assert!(
                TcpStream::connect(("127.0.0.1", ports[gone])).is_err(),
                "nothing listens"
            );
            cluster.broker(gone).start_again().expect("it starts again");
        }
        until(&format!("{topic} known"), || {
            matches!(wire::partitions(ports[gone], &topic), Ok(Some(1)))
        });
    }
}

#[test]
fn all_three_brokers_start_again_after_all_were_killed() {
    let mut cluster =
        KafkaCluster::start(KafkaOptions::new().proxied(true)).expect("three brokers start");
    let port = cluster.broker(1).port();
    assert_eq!(
        wire::create_replicated_topic(port, "kept", 3).expect("Kafka answers"),
        0
    );
    wire::wait_for_topic(port, "kept");
    for number in 0..KafkaCluster::BROKERS {
        cluster.broker(number).kill().expect("it is killed");
    }
    assert!((0..3).all(|number| !cluster.broker(number).is_running()));
    cluster.start_again().expect("they start again");
    wire::wait_for_topic(cluster.broker(2).proxy().port(), "kept");
}

#[test]
fn a_broker_is_reached_through_its_proxy_until_that_is_cut() {
    let broker = Kafka::start(KafkaOptions::new().proxied(true)).expect("Kafka starts");
    assert_eq!(
        broker.proxied_brokers(),
        broker.proxy().address().to_string()
    );
    assert_eq!(
        wire::partitions(broker.proxy().port(), "any").expect("Kafka answers"),
        None
    );
    broker.proxy().refuse();
    assert!(wire::partitions(broker.proxy().port(), "any").is_err());
    assert_eq!(
        wire::partitions(broker.port(), "any").expect("Kafka answers without it"),
        None
    );
}
