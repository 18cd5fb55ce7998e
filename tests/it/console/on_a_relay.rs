//! `tidings relay --console`: the console on the admin port of a relay.

use std::io::Write as _;
use std::net::TcpStream;
use std::process::Command;

use super::tempfile::Users;
use super::{Console, PASSWORD, USER, links};
use crate::support::eventually::until_blocking;
use crate::support::services::{TestDatabase, brokers, migrated_database};

/// Returns the command of a relay with its console.
fn relay(database: &TestDatabase, arguments: &[&str]) -> Command {
    let name = uuid::Uuid::now_v7().simple().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command
        .args(["relay", "--create-topics", "--log-format", "json", "--name"])
        .arg(format!("t_{name}"))
        .args(["--topic", &format!("console-{name}")])
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", &database.url)
        .env("KAFKA_BROKERS", brokers());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_serves_the_console_with_actions_beside_its_health() {
    let database = migrated_database().await;
    sqlx::query(
        "insert into tidings.scheduled (aggregatetype, aggregateid, type, payload, due_at)
         values ('order', '7', 'Reminder', '{}', now() + interval '1 hour')",
    )
    .execute(&database.pool)
    .await
    .expect("a scheduled event");
    tokio::task::block_in_place(|| {
        let users = Users::new(&format!("{USER}:{PASSWORD}\n"));
        let path = users.0.to_str().expect("UTF-8").to_owned();
        let arguments = [
            "--listen",
            "127.0.0.1:0",
            "--console",
            "--allow-actions",
            "--console-users-file",
            &path,
        ];
        let command = relay(&database, &arguments);
        let mut console = Console::spawn(command, "admin", Some(users));
        let get = |path: &str| console.request("GET", path, &[], "").status;
        // Probes and scrapers have no password, and no page is open to them.
        assert_eq!((get("/health/live"), get("/metrics")), (200, 200));
        assert_eq!((get("/console"), get("/console/parked")), (401, 401));
        until_blocking("the relay is ready", || {
            (get("/health/ready") == 200).then_some(())
        });
        let overview = console.until("/console", "running");
        assert!(overview.contains("signed in as ada"), "{overview}");
        let page = console.page("/console/scheduled");
        let confirmation = console.page(&links(&page, "op=cancel-scheduled")[0]);
        assert_eq!(console.submit(&confirmation).status, 303);
        let page = console.page("/console/scheduled");
        assert!(page.contains("No event is scheduled."), "{page}");
        // An open tab does not delay the end of the relay.
        let mut tab = TcpStream::connect(&console.address).expect("the port listens");
        let head = format!(
            "GET /console/live?page=overview HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\n\r\n",
            super::basic()
        );
        tab.write_all(head.as_bytes()).expect("it is sent");
        assert_eq!(console.stop(), Some(0), "{}", console.log());
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_contradict_each_other_end_the_relay_before_it_starts() {
    let database = migrated_database().await;
    tokio::task::block_in_place(|| {
        for (arguments, remedy) in [
            (&["--allow-actions"][..], "add --console"),
            (&["--hide-payloads"], "add --console"),
            (&["--console", "--listen", "off"], "remove --listen off"),
            (&["--console", "--allow-actions"], "--console-token-file"),
            (&["--console", "--listen", "0.0.0.0:0"], "--insecure-listen"),
        ] {
            let output = relay(&database, arguments)
                .output()
                .expect("the binary runs");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
            assert!(text.contains(remedy), "{arguments:?}: {text}");
        }
    });
}
