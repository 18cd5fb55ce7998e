//! Access to the console: hosts, credentials, forms, headers and bounds.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use super::{Console, PASSWORD, USER, basic, form};
use crate::support::services::migrated_database;

/// Headers of every response.
const HEADERS: [(&str, &str); 6] = [
    (
        "content-security-policy",
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
         img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_response_has_a_strict_policy_and_foreign_hosts_get_nothing() {
    let database = migrated_database().await;
    tokio::task::block_in_place(|| {
        let console = Console::start(&[&database.url], None);
        for (path, status) in [
            ("/console", 200),
            ("/console/style.css", 200),
            ("/console/unknown", 404),
            ("/console/confirm?op=x", 403),
        ] {
            let response = console.request("GET", path, &[], "");
            assert_eq!(response.status, status, "{path}");
            let cache = match path.ends_with(".css") {
                true => "no-cache",
                false => "no-store",
            };
            assert_eq!(response.header("cache-control"), Some(cache), "{path}");
            for (name, value) in HEADERS {
                assert_eq!(response.header(name), Some(value), "{path}");
            }
        }
        let page = console.page("/console");
        assert!(
            !page.contains("<style") && !page.contains(" style=") && !page.contains("<script>"),
            "nothing is inline: {page}"
        );
        for host in ["evil.example", "127.0.0.1.evil.example", ""] {
            let response = console.request("GET", "/console", &[("host", host)], "");
            assert_eq!(response.status, 421, "{host}");
            assert!(!response.body.contains("<html"), "{response:?}");
        }
        let style = console.request("GET", "/console/style.css", &[], "");
        let tag = style.header("etag").expect("a tag");
        let again = console.request("GET", "/console/style.css", &[("if-none-match", tag)], "");
        assert_eq!((again.status, again.body.len()), (304, 0));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_with_users_shows_nothing_without_the_right_password() {
    let database = migrated_database().await;
    tokio::task::block_in_place(|| {
        let console = Console::with_actions(&[&database.url], None);
        let wrong = "Basic YWRhOndyb25nd3Jvbmd3cm9uZw==";
        for path in [
            "/console",
            "/console/live",
            "/console/style.css",
            "/console/confirm",
        ] {
            for headers in [&[][..], &[("authorization", wrong)]] {
                let response = console.request("GET", path, headers, "");
                assert_eq!(response.status, 401, "{path}");
                assert!(response.header("www-authenticate").is_some());
            }
        }
        let page = console.page("/console");
        assert!(page.contains("signed in as ada"), "{page}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_is_accepted_only_from_a_page_of_the_console() {
    let database = migrated_database().await;
    let event = "01940000-0000-7000-8000-000000000003";
    sqlx::query(
        "insert into tidings.scheduled (id, aggregatetype, aggregateid, type, payload, due_at)
         values ($1::uuid, 'order', '7', 'Reminder', '{}', now() + interval '1 hour')",
    )
    .bind(event)
    .execute(&database.pool)
    .await
    .expect("a scheduled event");
    let rows = || async {
        let count = sqlx::query_scalar::<_, i64>("select count(*) from tidings.scheduled");
        count.fetch_one(&database.pool).await.expect("a count")
    };
    let url = database.url.clone();
    let console = tokio::task::block_in_place(move || {
        let console = Console::with_actions(&[&url], None);
        let page = console.page(&format!(
            "/console/confirm?op=cancel-scheduled&event={event}"
        ));
        let body = form(&page);
        let origin = format!("http://{}", console.address);
        let authorization = basic();
        let authorization = ("authorization", authorization.as_str());
        let same = ("sec-fetch-site", "same-origin");
        let own = ("origin", origin.as_str());
        let post = |headers: &[(&str, &str)], body: &str| {
            console
                .request("POST", "/console/act", headers, body)
                .status
        };
        assert_eq!(post(&[own, same], &body), 401, "no credentials");
        assert_eq!(post(&[authorization], &body), 403, "no origin");
        let evil = ("origin", "http://evil.example");
        assert_eq!(post(&[authorization, evil], &body), 403, "another origin");
        let cross = ("sec-fetch-site", "cross-site");
        assert_eq!(
            post(&[authorization, own, cross], &body),
            403,
            "another site"
        );
        let other = Console::with_actions(&[&url], None);
        let foreign = other.page(&format!(
            "/console/confirm?op=cancel-scheduled&event={event}"
        ));
        let foreign = form(&foreign);
        assert_ne!(foreign, body);
        assert_eq!(
            post(&[authorization, own, same], &foreign),
            403,
            "the token of another process"
        );
        let without = format!("op=cancel-scheduled&event={event}");
        assert_eq!(post(&[authorization, own, same], &without), 403, "no token");
        let large = format!("{body}&x={}", "y".repeat(20_000));
        assert_eq!(post(&[authorization, own, same], &large), 400, "too large");
        let get = console.request("GET", &format!("/console/act?{body}"), &[authorization], "");
        assert_eq!(get.status, 405);
        console
    });
    assert_eq!(rows().await, 1, "nothing was cancelled");
    let page = console.page(&format!(
        "/console/confirm?op=cancel-scheduled&event={event}"
    ));
    let response = tokio::task::block_in_place(|| console.submit(&page));
    assert_eq!(response.status, 303, "{response:?}");
    assert_eq!(rows().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_without_actions_carries_out_none() {
    let database = migrated_database().await;
    tokio::task::block_in_place(|| {
        let console = Console::start(&[&database.url], None);
        assert!(console.page("/console/scheduled").contains("read-only"));
        let origin = format!("http://{}", console.address);
        let headers = [("origin", origin.as_str())];
        let body = "op=discard-parked&relay=a&all=1&token=x";
        let response = console.request("POST", "/console/act", &headers, body);
        assert_eq!(response.status, 403);
        assert!(response.body.contains("--allow-actions"), "{response:?}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exposed_console_does_not_start_without_a_secret() {
    let database = migrated_database().await;
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
        command.arg("console").args(arguments).env_clear();
        command.env("DATABASE_URL", &database.url);
        let output = tokio::task::block_in_place(|| command.output()).expect("the binary runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    let (code, text) = run(&["--listen", "0.0.0.0:0"]);
    assert!(
        code == Some(2) && text.contains("--insecure-listen"),
        "{text}"
    );
    let (code, text) = run(&["--listen", "127.0.0.1:0", "--allow-actions"]);
    assert!(
        code == Some(2) && text.contains("--console-token-file"),
        "{text}"
    );
    let (code, text) = run(&["--console-token-file", "/nonexistent"]);
    assert!(code == Some(2) && text.contains("cannot be read"), "{text}");
    let twice = [
        "--database-url",
        &database.url,
        "--database-url",
        &database.url,
    ];
    let mut status = Command::new(env!("CARGO_BIN_EXE_tidings"));
    status.arg("status").args(twice).env_clear();
    let output = tokio::task::block_in_place(|| status.output()).expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(2) && text.contains("more than once"),
        "{text}"
    );
    assert!(!text.contains(PASSWORD) && !text.contains(USER));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_slowly_is_closed() {
    let database = migrated_database().await;
    tokio::task::block_in_place(|| {
        let console = Console::with_actions(&[&database.url], None);
        let post = format!(
            "POST /console/act HTTP/1.1\r\nhost: {0}\r\norigin: http://{0}\r\nauthorization: {1}\r\n\
             content-length: 100\r\n\r\nop=",
            console.address,
            basic()
        );
        for (sent, status) in [("GET /console HT", None), (post.as_str(), Some("400"))] {
            let mut stream = TcpStream::connect(&console.address).expect("the console listens");
            let limit = Duration::from_secs(60);
            stream.set_read_timeout(Some(limit)).expect("a time limit");
            stream.write_all(sent.as_bytes()).expect("it is sent");
            let mut response = String::new();
            let read = stream.read_to_string(&mut response);
            assert!(read.is_ok(), "the connection stays open: {sent:?}");
            assert_eq!(response.split(' ').nth(1), status, "{response}");
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_can_neither_write_nor_wait_for_a_lock() {
    let database = migrated_database().await;
    let run = async |sql: &'static str| {
        let done = sqlx::raw_sql(sql).execute(&database.pool).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    };
    // Reading the table writes, as any function of a hostile owner may.
    run("create table tidings.written (n int);
         create function tidings.write() returns boolean language plpgsql volatile as
             'begin insert into tidings.written values (1); return true; end';
         alter table tidings.scheduled rename to scheduled_events;
         create view tidings.scheduled as select * from tidings.scheduled_events
             where tidings.write()")
    .await;
    let insert = "insert into tidings.scheduled_events
        (aggregatetype, aggregateid, type, payload, due_at)
        values ('order', '7', 'Reminder', '{}', now() + interval '1 hour')";
    run(insert).await;
    let page = |path: &'static str| {
        let console = Console::start(&[&database.url], None);
        tokio::task::block_in_place(|| console.page(path))
    };
    let written = page("/console/scheduled");
    assert!(written.contains("read-only transaction"), "{written}");
    let count = sqlx::query_scalar::<_, i64>("select count(*) from tidings.written");
    assert_eq!(count.fetch_one(&database.pool).await.expect("a count"), 0);
    let mut lock = database.pool.begin().await.expect("a transaction");
    sqlx::query("lock table tidings.saga in access exclusive mode")
        .execute(&mut *lock)
        .await
        .expect("a lock");
    let waited = page("/console/sagas");
    assert!(waited.contains("statement timeout"), "{waited}");
}
