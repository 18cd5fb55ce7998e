//! A small shop of five services, each with its own database, that communicate only by events.
//! `README.md` describes what to try.
//!
//! ```sh
//! # Everything, and a page to experiment with.
//! cargo run --example shop
//! # A script, and a verdict.
//! cargo run --example shop -- --orders 1000 --kill payment
//! ```
//!
//! The program starts itself again for each service, so that `kill -9` kills a real process.

// The runtime of the example owns its tasks, and ends with it.
#![allow(clippy::disallowed_methods)]

mod events;
mod gateway;
mod inventory;
mod legacy;
mod notification;
mod order;
mod payment;
mod plan;
mod processes;
mod script;
mod servers;
mod service;
mod shipping;
mod verdict;

/// Any error.
type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "off".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("order") => order::main().await,
        Some("payment") => payment::main().await,
        Some("inventory") => inventory::main().await,
        Some("shipping") => shipping::main().await,
        Some("notification") => notification::main().await,
        Some("legacy") => legacy::main().await,
        _ => run(plan::Plan::parse(&arguments)?).await,
    }
}

/// Starts the servers, a process for each service, and the gateway. Then runs the script or waits
/// for Ctrl-C.
async fn run(plan: plan::Plan) -> Result<(), Failure> {
    let servers = servers::Servers::start().await?;
    println!("{}", servers.describe());
    let processes = std::sync::Arc::new(processes::Processes::start(&servers)?);
    processes.ready().await?;
    let gateway = gateway::start(&servers, processes.clone(), plan.port).await?;
    println!("the shop is open: http://{gateway}");
    let outcome = match plan.script {
        Some(script) => {
            script::play(&script, &servers, &processes, &format!("http://{gateway}")).await
        }
        None => Ok(tokio::signal::ctrl_c().await?),
    };
    processes.stop();
    let _ = servers.clear().await; // after Ctrl-C the servers may have exited already
    outcome
}
