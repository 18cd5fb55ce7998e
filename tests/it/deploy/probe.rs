//! `tidings health`, the probe of the image.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::cli::Running;
use crate::support::eventually::until_blocking;
use crate::support::running::Place;
use crate::support::services::migrated_database;

/// Runs `tidings health` against an address. Returns its exit code and its output.
fn health(listen: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tidings"))
        .arg("health")
        .args(arguments)
        .env_clear()
        .env("TIDINGS_ADMIN_LISTEN", listen)
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).expect("UTF-8");
    (output.status.code(), text)
}

fn relay(place: &Place, brokers: &str) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command
        .args(["relay", "--name", &place.name, "--topic", &place.topic])
        .args(["--listen", "127.0.0.1:0", "--log-format", "json"])
        .args(["--create-topics"])
        .env_clear()
        .env("DATABASE_URL", &place.url)
        .env("KAFKA_BROKERS", brokers)
        .stdin(Stdio::null());
    Running::start(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_is_healthy_once_it_can_deliver() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let relay = relay(&place, &place.brokers);
    until_blocking("the relay is healthy", || {
        (health(relay.admin(), &[]) == (Some(0), "healthy\n".into())).then_some(())
    });
    let (code, text) = health(relay.admin(), &["--json"]);
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &report["status"]), (Some(0), &"ready".into()));
    let address = relay.admin().to_owned();
    assert_eq!(relay.stop("TERM").0, 0);
    let (code, text) = health(&address, &[]);
    assert!(code == Some(1) && text.contains("-> start it"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_without_brokers_is_alive_and_not_ready_with_the_reason() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let relay = relay(&place, "127.0.0.1:1");
    until_blocking("the reason is shown", || {
        let (code, text) = health(relay.admin(), &[]);
        (code == Some(1) && text.starts_with("not ready\n") && text.contains("kafka: "))
            .then_some(())
    });
    let (code, text) = health(relay.admin(), &["--live"]);
    assert_eq!((code, text.as_str()), (Some(0), "healthy\n"));
    relay.stop("TERM");
}

#[test]
fn a_server_that_does_not_answer_fails_the_probe_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("an address").to_string();
    let (code, text) = health(&address, &["--timeout", "200ms"]);
    assert!(
        code == Some(1) && text.contains("no response within 200ms"),
        "{text}"
    );
    // A server that is no admin server.
    let serving = std::thread::spawn(move || {
        // The first connection is the one that was not answered.
        let _ = silent.accept();
        let (mut stream, _) = silent.accept().expect("a connection");
        let _ = stream.write_all(b"220 mail ready\r\n");
    });
    let (code, text) = health(&address, &[]);
    assert!(
        code == Some(1) && text.contains("not one of an admin server"),
        "{text}"
    );
    serving.join().expect("no panic");
    let (code, text) = health("off", &[]);
    assert!(
        code == Some(2) && text.contains("admin.listen is off"),
        "{text}"
    );
}
