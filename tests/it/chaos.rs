//! Histories under injected faults, each reproducible from its seed.
//!
//! Each test takes a few seconds. `cargo run --release --example chaos` runs such histories for any
//! length of time.

#[path = "../chaos/mod.rs"]
mod history;

use history::{Plan, Program, inbound};

/// Runs the history that `words` describe and asserts that every check passes. A failure reports
/// how to replay the history.
async fn holds(words: &str) {
    let plan = Plan::parse(words.split(' ')).expect("the plan is valid");
    let program = Program {
        path: env!("CARGO_BIN_EXE_tidings").into(),
    };
    let mut steps = Vec::new();
    let report = history::run(&plan, &program, |step| steps.push(step.to_owned())).await;
    let report = report.unwrap_or_else(|error| panic!("{}\n{error}", steps.join("\n")));
    assert!(report.broken().is_empty(), "{}\n{report}", steps.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_stalls_and_crashes_on_every_side_break_no_promise() {
    holds("--seed 1 --seconds 30 --relays 2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_alone_that_is_killed_again_and_again_breaks_no_promise() {
    holds("--seed 2 --kills 12 --relays 1 --faults kill,freeze,restart,end-stream").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_brokers_of_which_one_comes_and_goes_break_no_promise() {
    holds(
        "--seed 3 --seconds 25 --brokers 3 --faults \
        kill,kill-broker,stop-broker,freeze-broker,cut-kafka,stall-kafka",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_are_killed_frozen_deployed_and_cut_off_from_their_servers_break_no_promise() {
    let plan = inbound::Plan::parse("--seed 371 --seconds 40 --members 3 --faults all".split(' '))
        .expect("good words");
    let words = [
        "--exact",
        "chaos::a_member_in_its_own_process",
        "--ignored",
        "--nocapture",
    ];
    let member = (
        std::env::current_exe().expect("this test's binary"),
        words.map(str::to_owned).to_vec(),
    );
    let programs = inbound::Programs {
        tidings: env!("CARGO_BIN_EXE_tidings").into(),
        member,
    };
    let mut steps = Vec::new();
    let report = inbound::run(&plan, &programs, |step| steps.push(step.to_owned())).await;
    let report = report.unwrap_or_else(|error| panic!("{}\n{error}", steps.join("\n")));
    assert!(report.broken().is_empty(), "{}\n{report}", steps.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "not a test: the process that the history above kills"]
async fn a_member_in_its_own_process() {
    if std::env::var_os("CHAOS_RELEASE").is_some() {
        inbound::member().await.expect("it ends well");
    }
}
