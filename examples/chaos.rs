//! Tries to break the relay for as long as one likes, and says whether it held: `cargo run --release --example chaos -- --minutes 30`.
//! `--kills 500` counts in another way; `--help` has the rest. Starts a Postgres and a Kafka of its own and leaves nothing behind.
//!
//! The relays are this program too, started again with the word `relay`: the binary `tidings` by another name.
use std::process::ExitCode;

#[path = "../tests/chaos/mod.rs"]
mod history;

use history::{Plan, Program};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "relay") {
        return tidings::cli::main();
    }
    match Plan::parse(words.iter().map(String::as_str))
        .map_err(Into::into)
        .and_then(|plan| play(&plan))
    {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
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
