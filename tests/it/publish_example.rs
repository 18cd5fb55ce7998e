//! `examples/publish.rs`, run as a separate process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use crate::support::services::database;

/// The running example, killed on drop.
struct Example {
    process: Child,
    address: String,
}

impl Example {
    fn start(database_url: &str) -> Self {
        // This test is `…/deps/it-…`; cargo builds the examples next to `deps`.
        let test = std::env::current_exe().expect("the test has a path");
        let program = test
            .ancestors()
            .nth(2)
            .expect("the test is in `deps/`")
            .join("examples/publish");
        let mut process = Command::new(&program)
            .env("DATABASE_URL", database_url)
            .env("PORT", "0")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{} runs (cargo test builds it): {error}", program.display())
            });
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("the output is piped"))
            .read_line(&mut line)
            .expect("the example prints its address");
        let address = line
            .trim()
            .strip_prefix("listening on ")
            .unwrap_or_else(|| panic!("an address in {line:?}"))
            .to_owned();
        Self { process, address }
    }

    fn post(&self, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("the server listens");
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\
             content-type: application/json\r\n"
        );
        write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len())
            .expect("the request is sent");
        let mut response = String::new();
        stream
            .read_to_string(&mut response)
            .expect("the server answers");
        response
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // The process may have ended already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_changes_rows_and_publishes_their_events_together() {
    let database = database().await;
    let url = database.url.clone();
    let exchange = tokio::task::spawn_blocking(move || {
        let example = Example::start(&url);
        let placed = example.post("/orders", r#"{"customer": "ada", "total_cents": 1999}"#);
        assert!(
            placed.starts_with("HTTP/1.1 201") && placed.ends_with("\r\n1"),
            "{placed}"
        );
        let cancelled = example.post("/orders/1/cancel", "");
        assert!(cancelled.starts_with("HTTP/1.1 204"), "{cancelled}");
        let again = example.post("/orders/1/cancel", "");
        assert!(again.starts_with("HTTP/1.1 409"), "{again}");
    });
    exchange
        .await
        .expect("every request receives the expected answer");

    let events: Vec<(String, String, String)> =
        sqlx::query_as("select aggregateid, type, payload::text from tidings.outbox order by seq")
            .fetch_all(&database.pool)
            .await
            .expect("the query succeeds");
    let placed = r#"{"Placed":{"order_id":1,"customer":"ada","total_cents":1999}}"#;
    let expected = [
        ("1", "OrderPlaced", placed),
        ("1", "OrderCancelled", r#"{"Cancelled":{"order_id":1}}"#),
    ];
    assert_eq!(
        events,
        expected.map(|(id, ty, payload)| (id.to_owned(), ty.to_owned(), payload.to_owned()))
    );
}
