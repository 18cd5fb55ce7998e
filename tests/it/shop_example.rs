//! `examples/shop`, run as a separate process.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tokio::sync::Mutex;

use crate::support::eventually::until_blocking;

/// Allows one shop at a time, because its databases have fixed names.
pub(crate) static ONE: Mutex<()> = Mutex::const_new(());

pub(crate) async fn shop() -> Command {
    let database = crate::support::services::database().await;
    // This test is `…/deps/it-…`; cargo builds the examples next to `deps`.
    let test = std::env::current_exe().expect("the test has a path");
    let mut command = Command::new(
        test.ancestors()
            .nth(2)
            .expect("the test is in `deps/`")
            .join("examples/shop"),
    );
    // Any database of the server works, because the shop creates its own.
    let server = url::Url::parse(&database.url)
        .expect("a URL")
        .join("/postgres")
        .expect("a URL");
    command
        .env("DATABASE_URL", server.as_str())
        .env("KAFKA_BROKERS", crate::support::services::brokers());
    command
}

/// Plays a script of the shop to its end. Returns its output.
async fn played(args: &[&str]) -> String {
    let mut command = shop().await;
    command.args(args);
    let done = tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("the task does not panic")
        .expect("cargo test builds it");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}{errors}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_is_completed_or_compensated_once_though_a_service_is_killed_in_the_middle() {
    let _one = ONE.lock().await;
    // The services of this shop end before they commit their last offsets, so its events are read
    // again by the next one unless it replaces them.
    played(&["--orders", "3"]).await;
    let said = played(&["--orders", "200", "--kill", "payment"]).await;
    let count = |word: &str| -> u64 {
        let line = said
            .lines()
            .find(|line| line.starts_with(word))
            .unwrap_or_else(|| panic!("{word}: {said}"));
        line.rsplit(' ')
            .next()
            .and_then(|count| count.parse().ok())
            .expect("a count")
    };
    assert!(
        count("completed") > 100 && count("cancelled") > 20,
        "both outcomes occur: {said}"
    );
    assert_eq!(count("completed") + count("cancelled"), 200);
    assert!(said.contains("payment is killed (-9)"), "{said}");
}

/// The running shop. Its processes end with this value.
pub(crate) struct Shop {
    process: Child,
    pub(crate) address: String,
}

impl Shop {
    pub(crate) fn open(mut command: Command) -> Self {
        let mut process = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("cargo test builds it");
        let lines = BufReader::new(process.stdout.take().expect("the output is piped")).lines();
        let mut said = lines.map(|line| line.expect("text"));
        let address = said
            .find_map(|line| {
                line.strip_prefix("the shop is open: http://")
                    .map(str::to_owned)
            })
            .expect("the shop prints its address");
        Self { process, address }
    }

    /// Sends a request. Returns status and body.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        crate::support::http::ask(&self.address, method, path, body)
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.ask("GET", path, "").1).expect("JSON")
    }

    fn place(&self) -> String {
        let id = uuid::Uuid::now_v7().to_string();
        let order = format!(
            r#"{{"order_id": "{id}", "customer": "ada", "country": "Norway",
                "article": "teapot", "quantity": 1}}"#
        );
        self.until("the order is placed", || {
            self.ask("POST", "/api/orders/v2", &order).0 == 201
        });
        id
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        until_blocking(what, || holds().then_some(()));
    }

    fn circuit(&self, service: &str) -> String {
        let state = self.json("/play/state");
        let services = state["services"].as_array().expect("a list").clone();
        services
            .iter()
            .find(|one| one["name"] == service)
            .expect("the service is listed")["circuit"]
            .as_str()
            .expect("the circuit has a state")
            .to_owned()
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_answers_with_what_it_has_names_what_is_missing_and_leaves_a_dead_service_alone()
 {
    let _one = ONE.lock().await;
    let command = shop().await;
    let playing = tokio::task::spawn_blocking(move || {
        let shop = Shop::open(command);
        let first = shop.place();
        let completed =
            |id: &str| shop.json(&format!("/api/orders/{id}"))["order"]["status"] == "completed";
        shop.until("an order is completed", || completed(&first));
        shop.until("all of it is shown", || {
            shop.json(&format!("/api/orders/{first}"))["missing"] == serde_json::json!([])
        });
        let whole = shop.json(&format!("/api/orders/{first}"));
        assert_eq!(
            (&whole["missing"], &whole["shipping"]["country"]),
            (&serde_json::json!([]), &"Norway".into()),
            "{whole}"
        );
        assert_eq!(whole["payment"]["cents"], 1_000);

        // The migration is route by route: requests that the new service does not handle yet go to
        // the legacy system.
        assert!(
            shop.ask("GET", "/api/orders", "")
                .1
                .contains("the legacy system")
        );
        assert!(
            shop.ask("GET", "/api/orders/1/invoice", "")
                .1
                .contains("abacus")
        );
        assert!(shop.ask("GET", "/api/orders/v2", "").1.contains(&first));

        assert_eq!(shop.ask("POST", "/play/payment/kill", "").0, 200);
        let second = shop.place();
        let part = shop.json(&format!("/api/orders/{second}"));
        assert_eq!(
            (&part["missing"], &part["order"]["status"]),
            (&serde_json::json!(["payment"]), &"placed".into()),
            "{part}"
        );
        shop.until("its saga waits for the payment", || {
            shop.json(&format!("/api/orders/{second}"))["order"]["checkout"]["step"]
                == "take-payment"
        });
        shop.until("the circuit opens", || {
            let (status, said) = shop.ask("GET", &format!("/api/payments/{second}"), "");
            assert!(status == 503 || said.contains("circuit"), "{status} {said}");
            shop.circuit("payment") == "open"
        });
        assert_eq!(shop.circuit("order"), "closed");
        assert_eq!(shop.ask("POST", "/play/payment/start", "").0, 200);
        shop.until("the waiting order is completed", || completed(&second));
        shop.until("the circuit closes", || {
            shop.ask("GET", &format!("/api/payments/{second}"), "");
            shop.circuit("payment") == "closed"
        });
        assert!(shop.ask("GET", "/", "").1.contains("A small shop"));
        assert_eq!(shop.ask("GET", "/health/ready", "").0, 200);
    });
    playing.await.expect("the task does not panic");
}
