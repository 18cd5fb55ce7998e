//! Updates of open tabs.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{Console, links};
use crate::support::services::migrated_database;

/// An open stream of a page.
struct Stream(BufReader<TcpStream>);

impl Stream {
    fn open(console: &Console, path: &str) -> Self {
        let mut stream = TcpStream::connect(&console.address).expect("the console listens");
        let head = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", console.address);
        stream
            .write_all(head.as_bytes())
            .expect("the request is sent");
        stream
            .set_read_timeout(Some(Duration::from_secs(120)))
            .expect("a time limit");
        Self(BufReader::new(stream))
    }

    /// Returns the lines up to the first one that contains `text`.
    fn until(&mut self, text: &str) -> String {
        let mut read = String::new();
        while !read.contains(text) {
            let mut line = Vec::new();
            let count = self.0.read_until(b'\n', &mut line).expect("a line");
            assert!(count > 0, "the stream ended before {text:?}: {read}");
            read.push_str(&String::from_utf8_lossy(&line));
        }
        read
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tab_receives_a_page_only_when_it_has_changed() {
    let database = migrated_database().await;
    let console = Console::start(&[&database.url], None);
    let page = console.until("/console", "No relay has run");
    let live = page
        .split("data-live=\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .expect("the page updates by itself")
        .replace("&amp;", "&");
    let mut stream = Stream::open(&console, &live);
    // The first thing that arrives is the comment of a quiet stream.
    let quiet = tokio::task::block_in_place(|| stream.until("\n:"));
    assert!(!quiet.contains("data:"), "{quiet}");
    sqlx::query("insert into tidings.relay (name, position) values ('billing', '{}')")
        .execute(&database.pool)
        .await
        .expect("a relay");
    let began = Instant::now();
    let changed = tokio::task::block_in_place(|| stream.until("billing"));
    assert!(
        changed.contains("id: ") && changed.contains("data: <h1>"),
        "{changed}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    let dead = console.page("/console/dead-letters");
    assert!(
        !dead.contains("data-live"),
        "pages that read Kafka stay as they are"
    );
    assert!(links(&page, "/console/parked").len() >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_streams_is_bounded_and_a_closed_one_is_free_again() {
    let database = migrated_database().await;
    tokio::task::block_in_place(|| {
        let console = Console::start(&[&database.url], None);
        let mut open: Vec<Stream> = (0..24)
            .map(|_| {
                let mut stream = Stream::open(&console, "/console/live?page=overview");
                assert!(stream.until("\r\n").contains("200"));
                stream
            })
            .collect();
        let status = || {
            console
                .request("GET", "/console/live?page=sagas", &[], "")
                .status
        };
        assert_eq!(status(), 503);
        console.page("/console/sagas");
        open.pop();
        let began = Instant::now();
        loop {
            let mut stream = Stream::open(&console, "/console/live?page=overview");
            if stream.until("\r\n").contains("200") {
                break;
            }
            assert!(
                began.elapsed() < Duration::from_secs(120),
                "the place stays taken"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    });
}
