//! Publishing from Java, Python, Go and JavaScript: the code that the page `publishing.md` shows
//! runs with the real clients.

use serde_json::{Value, json};
use sqlx::Row as _;

use crate::support::languages::{Program, Source};
use crate::support::services::{TestDatabase, migrated_database};

/// Line of a program that the code of the page replaces.
const MARK: &str = "BLOCK";

const ORDER: i64 = 7;
/// An order whose event the outbox refuses.
const REFUSED_ORDER: i64 = 13;
const CHECK_VIOLATION: &str = "23514";

/// A text that breaks a statement or a JSON document that is made by concatenation.
const CORRELATION_ID: &str = r#"it's "é" \ 1"#;

/// A program of `tests/it/publishing_clients` with the only block of this language on the page.
fn source(folder: &'static str, file: &'static str, comment: &str, language: &str) -> Source {
    let page = include_str!("../../docs/publishing.md");
    let blocks: Vec<&str> = page
        .split(&format!("```{language}\n"))
        .skip(1)
        .filter_map(|rest| Some(rest.split_once("```")?.0))
        .collect();
    let [block] = blocks[..] else {
        panic!("the page has {} blocks of {language}", blocks.len())
    };
    Source::read(folder, file).replace(&format!("{comment} {MARK}\n"), block)
}

fn payload() -> Value {
    json!({"order_id": ORDER, "total_cents": 1999})
}

fn headers() -> Value {
    json!({"correlationid": CORRELATION_ID})
}

/// A database with the table `orders`, whose outbox refuses the event of one order.
async fn database_of_orders() -> TestDatabase {
    let database = migrated_database().await;
    let sql = format!(
        "create table orders (id bigint primary key, total_cents bigint not null);
        alter table tidings.outbox add check (aggregateid <> '{REFUSED_ORDER}')"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&database.pool)
        .await
        .expect("the tables can be changed");
    database
}

/// Places an order whose event is refused, and another one on the same connection. The first leaves
/// nothing. The second leaves its row and its event, both from one transaction.
async fn assert_published(program: &Program, values: &[&str]) {
    let database = database_of_orders().await;
    let orders = [REFUSED_ORDER, ORDER].map(|order| order.to_string());
    let arguments = [&[&*database.url][..], values, &[&orders[0], &orders[1]]].concat();
    let output = program.run(&arguments).await;
    let ends: Vec<&str> = output.split_whitespace().collect();
    assert_eq!(ends, [CHECK_VIOLATION, "ok"]);

    let rows = sqlx::query("select id, total_cents, xmin::text as xmin from orders")
        .fetch_all(&database.pool)
        .await
        .expect("the orders can be read");
    let [order] = &rows[..] else {
        panic!("there are {} orders", rows.len())
    };
    assert_eq!(order.get::<i64, _>("id"), ORDER);
    assert_eq!(order.get::<i64, _>("total_cents"), 1999);

    let sql = "select aggregatetype, aggregateid, type, version, topic, payload, headers, \
        xmin::text as xmin, payload_bytes is null as no_bytes from tidings.outbox";
    let rows = sqlx::query(sql)
        .fetch_all(&database.pool)
        .await
        .expect("the outbox can be read");
    let [event] = &rows[..] else {
        panic!("there are {} events", rows.len())
    };
    assert_eq!(event.get::<&str, _>("aggregatetype"), "order");
    assert_eq!(event.get::<&str, _>("aggregateid"), ORDER.to_string());
    assert_eq!(event.get::<&str, _>("type"), "OrderPlaced");
    assert_eq!(event.get::<Value, _>("payload"), payload());
    assert_eq!(event.get::<Value, _>("headers"), headers());
    assert_eq!(event.get::<i32, _>("version"), 1);
    assert_eq!(event.get::<Option<&str>, _>("topic"), None);
    assert!(event.get::<bool, _>("no_bytes"));
    assert_eq!(
        event.get::<&str, _>("xmin"),
        order.get::<&str, _>("xmin"),
        "the order and the event are of one transaction"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn jdbc_publishes_as_the_documentation_shows() {
    let source = source("publishing_clients/java", "Publish.java", "//", "java");
    let Some(program) = source.java().await else {
        return;
    };
    let (payload, headers) = (payload().to_string(), headers().to_string());
    assert_published(&program, &[&payload, &headers]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg_publishes_as_the_documentation_shows() {
    let source = source("publishing_clients/python", "publish.py", "#", "python");
    let Some(program) = source.python().await else {
        return;
    };
    assert_published(&program, &[CORRELATION_ID]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pgx_publishes_as_the_documentation_shows() {
    let source = source("publishing_clients/go", "publish.go", "//", "go");
    let Some(program) = source.go().await else {
        return;
    };
    assert_published(&program, &[CORRELATION_ID]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_postgres_publishes_as_the_documentation_shows() {
    let source = source("publishing_clients/javascript", "publish.js", "//", "js");
    let Some(program) = source.javascript().await else {
        return;
    };
    assert_published(&program, &[CORRELATION_ID]).await;
}
