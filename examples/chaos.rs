//! Tries to break the relay, or subscribers and sagas, and reports whether each guarantee held:
//!
//! ```sh
//! cargo run --release --example chaos -- --minutes 30            # the relay
//! cargo run --release --example chaos -- inbound --minutes 30    # subscribers and sagas
//! ```
//!
//! `--help` lists the options of each. Starts a Postgres and a Kafka of its own and leaves nothing
//! behind.
//!
//! The relays and the operator's commands are this program too, started with the words of the
//! binary `tidings`; members are this program with the word `member`.

// The runtime of the example owns its tasks, and ends with it.
#![allow(clippy::disallowed_methods)]
use std::process::ExitCode;

#[path = "../tests/chaos/mod.rs"]
mod history;

use history::{Plan, Program, inbound};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut options = words.iter().map(String::as_str);
    let played = match words.first().map(String::as_str) {
        Some("relay" | "dead-letters") => return tidings::cli::main(),
        Some("member") => member().map(|()| ExitCode::SUCCESS),
        Some("inbound") => inbound::Plan::parse(options.skip(1))
            .map_err(Into::into)
            .and_then(|plan| play_inbound(&plan)),
        _ => Plan::parse(&mut options)
            .map_err(Into::into)
            .and_then(|plan| play(&plan)),
    };
    played.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(2)
    })
}

#[tokio::main]
async fn play(plan: &Plan) -> Result<ExitCode, history::Failure> {
    let program = Program {
        path: std::env::current_exe()?,
    };
    let report = history::run(plan, &program, |step| println!("{step}")).await?;
    println!("\n{report}");
    Ok(if report.broken().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[tokio::main]
async fn play_inbound(plan: &inbound::Plan) -> Result<ExitCode, history::Failure> {
    let path = std::env::current_exe()?;
    let programs = inbound::Programs {
        tidings: path.clone(),
        member: (path, vec!["member".to_owned()]),
    };
    let report = inbound::run(plan, &programs, |step| println!("{step}")).await?;
    println!("\n{report}");
    Ok(if report.broken().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[tokio::main]
async fn member() -> Result<(), history::Failure> {
    inbound::member().await
}
