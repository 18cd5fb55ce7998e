//! A script that places many orders, kills a service halfway, and prints a verdict.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use super::plan::Script;
use super::processes::Processes;
use super::servers::Servers;
use super::{Failure, verdict};

/// Number of concurrent customers.
const CUSTOMERS: usize = 8;

/// Time before a killed service is started again.
const AWAY: Duration = Duration::from_secs(3);

pub(crate) async fn play(
    script: &Script,
    servers: &Servers,
    processes: &Processes,
    gateway: &str,
) -> Result<(), Failure> {
    let (began, next, http) = (Instant::now(), AtomicUsize::new(0), reqwest::Client::new());
    let customer = || async {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= script.orders {
                return Ok::<_, Failure>(());
            }
            place(&http, gateway, n).await?;
        }
    };
    let killing = async {
        let Some(name) = &script.kill else {
            return Ok(());
        };
        while next.load(Ordering::Relaxed) < script.orders / 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        processes.kill(name);
        println!("{name} is killed (-9)");
        tokio::time::sleep(AWAY).await;
        println!("{name} is restarted");
        processes.launch(name)
    };
    let placing = futures_util::future::try_join_all((0..CUSTOMERS).map(|_| customer()));
    tokio::try_join!(placing, killing)?;
    println!(
        "{} orders were placed in {:.1} s",
        script.orders,
        began.elapsed().as_secs_f64()
    );
    verdict::wait_and_judge(script.orders, servers, began).await
}

/// Places the n-th order, and retries with the same id.
async fn place(http: &reqwest::Client, gateway: &str, n: usize) -> Result<(), Failure> {
    let customer = ["ada", "grace", "alan", "ada", "grace", "alan", "pauper"][n % 7];
    let article = [
        "teapot", "kettle", "spoon", "teapot", "kettle", "spoon", "spoon", "teapot", "unicorn",
    ][n % 9];
    let country = [
        "Norway", "Chile", "Japan", "Norway", "Chile", "Japan", "Norway", "Chile", "Japan",
        "Norway", "Atlantis",
    ][n % 11];
    let order = json!({
        "order_id": Uuid::now_v7(),
        "customer": customer,
        "country": country,
        "article": article,
        "quantity": 1 + n % 3,
    });
    let patience = Instant::now() + Duration::from_secs(120);
    loop {
        let request = http
            .post(format!("{gateway}/api/orders/v2"))
            .header("content-type", "application/json")
            .body(order.to_string());
        let refusal = match request.send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => answer.text().await?,
            Err(error) => error.to_string(),
        };
        if Instant::now() > patience {
            return Err(format!("an order cannot be placed: {refusal}").into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
