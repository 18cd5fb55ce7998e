//! Inspection and replay of dead letters by command.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tidings::subscriber::{Event, HandlerError, Meta, Retry, State, Tx};

use crate::support::place::{Changed, Place, create_effects, effect, start, until_effects};
use crate::support::records::{NEVER_AT_THE_END, Writing};
use crate::support::services::migrated_database;
use crate::support::terminal::on_a_terminal;

/// Runs `tidings dead-letters …` and returns its output.
pub(super) fn dead_letters(place: &Place, arguments: &[&str]) -> String {
    dead_letters_with(place, arguments, &[])
}

/// Same as [`dead_letters`], with these environment variables.
fn dead_letters_with(place: &Place, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command
        .arg("dead-letters")
        .args(arguments)
        .env_clear()
        .env("KAFKA_BROKERS", &place.brokers)
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    let output = tokio::task::block_in_place(|| command.output()).expect("the binary runs");
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs the command on a terminal of its own. Returns what it shows.
fn shown_on_a_terminal(place: &Place, line: &str) -> String {
    let mut command = on_a_terminal(&format!("dead-letters {line}"));
    command
        .env("KAFKA_BROKERS", &place.brokers)
        .stdin(Stdio::null());
    let output = tokio::task::block_in_place(|| command.output()).expect("script(1) runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_replayed_once_in_order_to_their_subscriber_and_discarded() {
    async fn while_broken(
        Event(changed): Event<Changed>,
        meta: Meta,
        mut tx: Tx,
        State(broken): State<Arc<AtomicBool>>,
    ) -> Result<(), HandlerError> {
        if broken.load(Ordering::SeqCst) {
            return Err(HandlerError::dead_letter("broken"));
        }
        effect(&mut tx, &changed, &meta).await
    }
    let (database, place, broken) = (
        migrated_database().await,
        Place::new(2).await,
        Arc::new(AtomicBool::new(true)),
    );
    create_effects(&database.pool).await;
    place.publish(3, 1..=3).await;
    let running = start!(
        place
            .subscriber()
            .on(while_broken)
            .inbox(database.pool.clone())
            .state(broken.clone())
            .retry(Retry::never())
            .kill_switch(None)
    );
    running
        .until("all are dead", |seen| seen.dead_lettered() == 9)
        .await;
    let topic = format!("{}.{}.dlt", place.topic, place.group);
    let listed = dead_letters(&place, &["list", &topic]);
    assert_eq!(
        (listed.lines().count(), listed.matches("broken").count()),
        (10, 9),
        "{listed}"
    );
    assert_eq!(
        dead_letters(&place, &["list", &topic, "--type", "Other"]),
        format!("no dead letters in {topic}\n")
    );
    let json: serde_json::Value =
        serde_json::from_str(&dead_letters(&place, &["list", &topic, "--json"])).expect("JSON");
    let letters = json.as_array().expect("a list");
    assert_eq!(letters.len(), 9, "{json:#}");
    assert!(
        letters.iter().all(|letter| letter["reason"] == "broken"
            && letter["origin"]["group"] == *place.group
            && letter["replays"] == 0),
        "{json:#}"
    );
    let first = listed
        .lines()
        .nth(1)
        .and_then(|line| line.split_whitespace().next())
        .expect("a dead letter is listed");
    let shown = dead_letters(&place, &["show", &topic, first]);
    assert!(
        shown.contains("reason   broken")
            && shown.contains("kafka_dlt-original-topic")
            && shown.contains("ce_id"),
        "{shown}"
    );
    let shown = dead_letters(&place, &["show", &topic, first, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let headers = json["headers"].as_array().expect("the headers");
    assert!(
        json["value"].is_string() && headers.iter().any(|header| header["name"] == "ce_id"),
        "{shown}"
    );
    assert_eq!(
        dead_letters(&place, &["replay", &topic, "--all", "--dry-run"])
            .matches("would be replayed")
            .count(),
        9
    );

    // The replayed event becomes a dead letter again.
    assert!(dead_letters(&place, &["replay", &topic, first]).ends_with("1 replayed\n"));
    running
        .until("it is dead again", |seen| seen.dead_lettered() == 10)
        .await;
    assert_eq!(dead_letters(&place, &["list", &topic]).lines().count(), 10);
    broken.store(false, Ordering::SeqCst);
    assert!(
        dead_letters(&place, &["discard", &topic, "--all", "--max", "1", "--yes"])
            .ends_with("1 discarded\n")
    );
    let shown = shown_on_a_terminal(&place, &format!("replay {topic} --all"));
    assert!(
        shown.contains("replaying [") && shown.trim_end().ends_with("8 replayed"),
        "{shown}"
    );
    until_effects(&database.pool, 8).await;
    assert_eq!(
        dead_letters(&place, &["list", &topic]),
        format!("no dead letters in {topic}\n")
    );
    running.stop().await;
    let in_order: Vec<bool> = sqlx::query_scalar(
        "select array_agg(version order by seq) = array_agg(version order by version) from effect \
        where account in (select account from effect group by account having count(*) = 3) \
        group by account",
    )
    .fetch_all(&database.pool)
    .await
    .expect("the query succeeds");
    assert!(
        in_order.len() == 2 && in_order.iter().all(|ordered| *ordered),
        "{in_order:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_written_without_pause_is_listed_to_the_end_that_it_had() {
    let place = Place::new(2).await;
    for key in ["1", "2", "3"] {
        place
            .send_raw(key, Some("{}"), &[("ce_type", "First")])
            .await;
    }
    let writing = Writing::start(&place.brokers, &place.topic);
    writing.until_more(100).await;
    let list = |arguments: &[&str]| {
        let arguments = [&["list", &*place.topic], arguments].concat();
        dead_letters_with(&place, &arguments, &NEVER_AT_THE_END)
    };
    let listed = list(&[]);
    assert!(listed.lines().count() > 100, "{listed}");
    let first = list(&["--type", "First"]);
    assert_eq!(first.lines().count(), 4, "{first}");
    writing.stop();
}
