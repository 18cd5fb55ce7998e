//! The commands `tidings sagas`.

use std::process::{Command, Stdio};

use serde_json::Value;
use tidings::saga::SagaStatus;

use crate::support::services::{TestDatabase, brokers};
use crate::support::shop::{Shop, place_order};

/// Runs `tidings sagas`. Returns its exit code, stdout and stderr.
async fn sagas(shop: &Shop, arguments: &[&str]) -> (i32, String, String) {
    tidings(&shop.database, &[&["sagas"], arguments].concat()).await
}

/// Runs a command of the binary. Returns its exit code, stdout and stderr.
pub(super) async fn tidings(database: &TestDatabase, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", &database.url)
        .env("KAFKA_BROKERS", brokers())
        .stdin(Stdio::null());
    // A finding in one line can be searched for a phrase.
    if arguments.first() == Some(&"check") {
        command.env("COLUMNS", "1000");
    }
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("the task does not panic")
        .expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code().expect("the process exits with a code"),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Returns the output of `sagas show` for one saga.
pub(super) async fn shown(database: &TestDatabase, saga: &str) -> Value {
    let (code, json, error) = tidings(database, &["sagas", "show", saga, "--json"]).await;
    assert_eq!(code, 0, "{error}");
    serde_json::from_str(&json).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn sagas_are_listed_shown_aborted_ended_and_retried() {
    let mut shop = Shop::open().await;
    let (_, none, _) = sagas(&shop, &["list"]).await;
    assert_eq!(none, "no sagas\n");
    shop.run(place_order());
    shop.place([10, 20]).await;
    let (first, second) = (
        shop.until(10, SagaStatus::Running).await,
        shop.until(20, SagaStatus::Running).await,
    );
    let (first, second) = (first.id.to_string(), second.id.to_string());
    let (code, list, _) = sagas(
        &shop,
        &["list", "--saga", "place-order", "--status", "running"],
    )
    .await;
    assert_eq!(
        (code, list.matches("place-order").count()),
        (0, 2),
        "{list}"
    );
    assert!(list.contains(&first) && list.contains("reserve"), "{list}");
    let (_, json, _) = sagas(&shop, &["list", "--json"]).await;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["sagas"].as_array().map(Vec::len), Some(2));
    let (_, whole, _) = sagas(&shop, &["show", &first]).await;
    assert!(
        whole.contains("ahead    pay, confirm")
            && whole.contains(r#"{"order":10,"reserved":false}"#),
        "{whole}"
    );

    assert_eq!(sagas(&shop, &["abort", &first, "--yes"]).await.0, 0);
    let aborted = shop.until(10, SagaStatus::Compensated).await;
    assert_eq!(
        (aborted.undone, aborted.error.as_deref()),
        (
            vec!["reserve".to_owned()],
            Some("reserve: aborted by an operator")
        )
    );
    let (code, _, refused) = sagas(&shop, &["retry", &first]).await;
    assert_eq!(code, 3, "{refused}");

    assert_eq!(
        sagas(&shop, &["abort", "--force", &second, "--yes"])
            .await
            .0,
        0
    );
    shop.until(20, SagaStatus::Failed).await;
    let (_, whole, _) = sagas(&shop, &["show", &second]).await;
    assert!(
        whole.contains("ended by an operator at this step")
            && whole.contains("tidings sagas retry"),
        "{whole}"
    );
    assert_eq!(sagas(&shop, &["retry", &second]).await.0, 0);
    shop.until(20, SagaStatus::Running).await;
    shop.serve();
    shop.until(20, SagaStatus::Completed).await;
    let missing = uuid::Uuid::now_v7().to_string();
    assert_eq!(sagas(&shop, &["show", &missing]).await.0, 3);
    shop.close().await;
}
