//! `tidings where`: the path of one event through outbox, Kafka, subscribers and sagas.

use serde_json::Value;
use tidings::saga::SagaStatus;
use uuid::Uuid;

use super::{against, ended};
use crate::support::place::until;
use crate::support::services::TestDatabase;
use crate::support::shop::{Shop, place_order};

/// Runs a command of the binary. Returns its exit code, stdout and stderr.
async fn tidings(database: &TestDatabase, arguments: &[&str]) -> (i32, String, String) {
    let command = against(database, arguments);
    tokio::task::spawn_blocking(move || ended(command))
        .await
        .expect("the task does not panic")
}

/// Returns the JSON output for an event.
async fn path(database: &TestDatabase, arguments: &[&str]) -> Value {
    let all = [&["where", "--json"], arguments].concat();
    let (code, json, error) = tidings(database, &all).await;
    assert_eq!(code, 0, "{error}");
    serde_json::from_str(&json).expect("JSON")
}

/// Returns the id of the only event of this type.
async fn event(database: &TestDatabase, event_type: &str) -> Uuid {
    sqlx::query_scalar("select id from tidings.outbox where type = $1")
        .bind(event_type)
        .fetch_one(&database.pool)
        .await
        .expect("one event of the type")
}

fn steps(path: &Value) -> Vec<&str> {
    let steps = path["steps"].as_array().expect("steps");
    steps
        .iter()
        .map(|step| step["step"].as_str().expect("a word"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_path_of_an_event_leads_from_its_insert_to_the_events_that_it_caused() {
    let mut shop = Shop::open().await;
    shop.run(place_order());
    shop.serve();
    shop.place([7]).await;
    shop.until(7, SagaStatus::Completed).await;
    let placed = event(&shop.database, "OrderPlaced").await.to_string();

    // The relay stores its position once a second.
    let whole = until("the position includes the event", async || {
        let whole = path(&shop.database, &[&placed]).await;
        steps(&whole).contains(&"published").then_some(whole)
    })
    .await;
    assert_eq!(
        steps(&whole),
        ["inserted", "published", "record", "handled"],
        "{whole:#}"
    );
    assert_eq!(whole["unread"], Value::Array(Vec::new()), "{whole:#}");
    // The saga's first command follows from the event, and its reply from the command.
    let reserve = &whole["effects"][0];
    assert_eq!(reserve["type"], "ReserveStock", "{whole:#}");
    let reserved = &reserve["effects"][0];
    assert_eq!(reserved["type"], "StockReserved", "{whole:#}");

    // The reply belongs to the saga, and its causes lead back to the first event.
    let reply = path(&shop.database, &[reserved["id"].as_str().expect("an id")]).await;
    assert!(steps(&reply).contains(&"saga"), "{reply:#}");
    let causes: Vec<_> = reply["causes"]
        .as_array()
        .expect("causes")
        .iter()
        .map(|cause| cause["type"].as_str().expect("a type"))
        .collect();
    assert_eq!(causes, ["OrderPlaced", "ReserveStock"], "{reply:#}");

    let (code, text, error) = tidings(&shop.database, &["where", &placed, "--payload"]).await;
    assert_eq!(code, 0, "{error}");
    for part in [
        "inserted",
        "in Kafka",
        "handled",
        "led to",
        "ReserveStock",
        "\"order\":7",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_listed_by_aggregate_and_an_event_without_a_trace_is_refused() {
    let shop = Shop::open().await;
    shop.place([1, 2]).await;
    let (code, list, error) = tidings(&shop.database, &["where", "order/2"]).await;
    assert_eq!(
        (code, list.matches("order/2").count()),
        (0, 1),
        "{list}{error}"
    );
    assert!(
        list.contains("order/2") && !list.contains("order/1"),
        "{list}"
    );
    let (_, newest, _) = tidings(&shop.database, &["where", "--limit", "1"]).await;
    assert!(
        newest.contains("order/2") && newest.contains("-> add --before"),
        "{newest}"
    );
    let unknown = Uuid::now_v7().to_string();
    let (code, _, error) = tidings(&shop.database, &["where", &unknown]).await;
    assert_eq!(code, 3, "{error}");
    assert!(error.contains("--also-database"), "{error}");
    let (code, _, error) = tidings(&shop.database, &["where", "order"]).await;
    assert_eq!(code, 2, "{error}");
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_cannot_be_read_is_listed_and_not_taken_for_an_empty_one() {
    let shop = Shop::open().await;
    shop.place([1]).await;
    let placed = event(&shop.database, "OrderPlaced").await.to_string();
    sqlx::raw_sql("drop table tidings.subscriber_parked")
        .execute(&shop.database.pool)
        .await
        .expect("the table exists");
    let whole = path(&shop.database, &[&placed, "--brokers", "127.0.0.1:1"]).await;
    let unread = whole["unread"].as_array().expect("a list");
    let texts: Vec<_> = unread.iter().filter_map(Value::as_str).collect();
    assert!(
        texts.iter().any(|text| text.starts_with("Kafka: "))
            && texts
                .iter()
                .any(|text| text.contains("tables of Tidings are not")),
        "{texts:?}"
    );
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_are_listed_with_their_instances() {
    let mut shop = Shop::open().await;
    let (_, none, _) = tidings(&shop.database, &["subscribers", "list"]).await;
    assert_eq!(none, "no subscriber has its inbox in this database\n");
    shop.serve_stock();
    let list = until("the instance is registered", async || {
        let (code, json, error) = tidings(&shop.database, &["subscribers", "list", "--json"]).await;
        assert_eq!(code, 0, "{error}");
        let list: Value = serde_json::from_str(&json).expect("JSON");
        (list[0]["instances"][0]["state"] == "running").then_some(list)
    })
    .await;
    let types = list[0]["instances"][0]["types"].to_string();
    assert!(types.contains("ReserveStock"), "{list:#}");
    shop.close().await;
}
