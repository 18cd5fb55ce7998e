//! A database that stops responding in the middle of a statement.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::{Console, links};
use crate::support::services::migrated_database;

/// Returns the URL of a proxy in front of a database. A connection whose client sends one of
/// `statements` stays open and carries nothing more.
fn proxied(url: &str, statements: &'static [&'static str]) -> String {
    let mut url = url::Url::parse(url).expect("a URL");
    let host = url.host_str().expect("a host").to_owned();
    let server = (host, url.port().expect("a port"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    url.set_host(Some("127.0.0.1")).expect("a host");
    url.set_port(Some(port)).expect("a port");
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect((server.0.as_str(), server.1)) else {
                return;
            };
            let (to_client, from_server) = (copy(&client), copy(&server));
            std::thread::spawn(move || forward(from_server, to_client, &[]));
            std::thread::spawn(move || forward(client, server, statements));
        }
    });
    url.to_string()
}

fn copy(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("a socket can be copied")
}

fn forward(mut from: TcpStream, mut to: TcpStream, statements: &[&str]) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let count = match from.read(&mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let text = String::from_utf8_lossy(&bytes[..count]);
        if statements.iter().any(|statement| text.contains(statement)) {
            // Reads without forwarding until the client gives up.
            while from.read(&mut bytes).is_ok_and(|count| count > 0) {}
            break;
        }
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_and_an_action_end_without_an_answer_of_the_database() {
    let database = migrated_database().await;
    sqlx::query(
        "insert into tidings.scheduled (aggregatetype, aggregateid, type, payload, due_at)
         values ('order', '7', 'Reminder', '{}', now() + interval '1 hour')",
    )
    .execute(&database.pool)
    .await
    .expect("a scheduled event");
    let url = proxied(
        &database.url,
        &[
            "delete from \"tidings\".scheduled",
            "left(coalesce(obstacle, error)",
        ],
    );
    tokio::task::block_in_place(|| {
        let console = Console::with_actions(&[&url], None);
        let scheduled = console.page("/console/scheduled");
        let confirmation = console.page(&links(&scheduled, "op=cancel-scheduled")[0]);
        let response = console.submit(&confirmation);
        assert_eq!(response.header("location"), Some("/console/actions"));
        let running = console.page("/console/actions");
        assert!(running.contains(">running<"), "{running}");
        let page = console.page("/console/sagas");
        assert!(page.contains("did not respond within 15 s"), "{page}");
        let failed = console.until("/console/actions", ">failed<");
        assert!(
            failed.contains("did not respond within 40 s")
                && failed.contains("may have taken effect"),
            "{failed}"
        );
        assert!(console.log().contains("console action failed"));
    });
}
