//! Decisions of operators about subscribers: pauses, and parked events that are retried or
//! discarded. The commands are those of the binary.

use std::collections::HashMap;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::{encoding::text::encode, registry::Registry};
use serde_json::Value;
use tidings::health::{Check, Status, SubscriberCheck};
use tidings::subscriber::{
    Escalation, Event, HandlerError, Meta, Retry, State, SubscriberMetrics, SubscriberState, Tx,
};

use crate::support::place::{
    Changed, Place, assert_once_and_in_order, count, create_effects, effect, effects, start, until,
    until_effects,
};
use crate::support::rights::{Rights, run};
use crate::support::services::{TestDatabase, migrated_database};

/// Runs `tidings subscribers` to its end. Returns its exit code, stdout and stderr.
fn subscribers(url: &str, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command
        .arg("subscribers")
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", url)
        .env("USER", "ada")
        .stdin(Stdio::null());
    let Output {
        status,
        stdout,
        stderr,
    } = tokio::task::block_in_place(|| command.output()).expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("the output is UTF-8");
    (
        status.code().expect("the process exits with a code"),
        text(stdout),
        text(stderr),
    )
}

/// Runs `tidings subscribers`, which must succeed, with `--json`. Returns its output.
fn json(database: &TestDatabase, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--json"]].concat();
    let (code, out, error) = subscribers(&database.url, &arguments);
    assert_eq!(code, 0, "{arguments:?}: {out}{error}");
    serde_json::from_str(&out).unwrap_or_else(|_| panic!("{arguments:?}: {out}"))
}

/// Returns the number of records that a member has read and not finished.
fn unfinished(statistics: &tidings::subscriber::Statistics) -> u64 {
    let partitions = statistics.partitions();
    partitions
        .iter()
        .map(|partition| partition.unfinished)
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_subscriber_starts_no_event_through_a_restart_and_continues_in_order() {
    let (database, place) = (migrated_database().await, Place::new(2).await);
    create_effects(&database.pool).await;
    place.publish(3, 1..=2).await;
    let build = || {
        place
            .subscriber::<()>()
            .on(count)
            .inbox(database.pool.clone())
    };
    let running = start!(build());
    until_effects(&database.pool, 6).await;
    let group = place.group.as_str();

    let dry = json(&database, &["pause", group, "--dry-run"]);
    assert_eq!(
        (&dry["changed"], &dry["paused"]),
        (&false.into(), &false.into())
    );
    assert_eq!(running.statistics.state(), SubscriberState::Running);
    let paused = json(&database, &["pause", group, "--reason", "a migration"]);
    assert_eq!(
        (&paused["changed"], &paused["paused"]),
        (&true.into(), &true.into())
    );
    assert_eq!(paused["pause"]["reason"], "a migration");
    // The command has waited for the confirmation of each instance.
    assert_eq!(paused["instances"].as_array().map(Vec::len), Some(1));
    assert_eq!(paused["instances"][0]["confirmed"], true, "{paused}");
    assert_eq!(
        running.statistics.state(),
        SubscriberState::PausedByOperator
    );
    assert!(running.statistics.is_paused());
    let reason = running.statistics.reason().expect("a reason");
    assert!(
        reason.contains("ada@") && reason.contains("(role ") && reason.ends_with("a migration"),
        "{reason}"
    );
    let again = json(&database, &["pause", group, "--reason", "another one"]);
    assert_eq!(again["changed"], false);
    assert_eq!(again["pause"], paused["pause"], "a pause stays as it is");

    place.publish(3, 3..=4).await;
    running
        .until("the events are read", |seen| unfinished(seen) == 6)
        .await;
    let health = SubscriberCheck::new(&running.statistics).check().await;
    assert!(
        matches!(&health, Status::Degraded(text) if text.contains("a migration")
            && text.contains(&format!("subscribers resume {group}"))),
        "{health:?}"
    );
    let mut registry = Registry::default();
    SubscriberMetrics::default()
        .subscriber(&running.statistics)
        .register(&mut registry);
    let mut metrics = String::new();
    encode(&mut metrics, &registry).expect("a scrape");
    assert!(
        metrics.contains("state=\"paused by operator\"} 1"),
        "{metrics}"
    );
    running.stop().await;

    let running = start!(build());
    running
        .until("the events are read again", |seen| unfinished(seen) == 6)
        .await;
    assert_eq!(
        running.statistics.state(),
        SubscriberState::PausedByOperator
    );
    assert_eq!(
        (running.statistics.handled(), effects(&database.pool).await),
        (0, 6)
    );
    let (_, list, _) = subscribers(&database.url, &["list"]);
    assert!(
        list.contains(" paused ") && list.contains(&format!("{group} is paused since")),
        "{list}"
    );
    let listed = json(&database, &["list"]);
    assert_eq!(listed[0]["pause"]["reason"], "a migration", "{listed}");

    let resumed = json(&database, &["resume", group]);
    assert_eq!(
        (&resumed["changed"], &resumed["paused"]),
        (&true.into(), &false.into())
    );
    until_effects(&database.pool, 12).await;
    running
        .until("all are handled", |seen| seen.handled() == 6)
        .await;
    assert_eq!(running.statistics.state(), SubscriberState::Running);
    running.stop().await;
    assert_once_and_in_order(&database.pool, 3, 4).await;
    let (code, text, _) = subscribers(&database.url, &["resume", group]);
    assert_eq!(code, 0);
    assert!(text.contains("is not paused"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_or_silent_subscriber_is_reported_when_it_is_paused() {
    let database = migrated_database().await;
    let (code, _, error) = subscribers(&database.url, &["pause", "nowhere"]);
    assert_eq!(code, 3);
    assert!(
        error.contains("no subscriber nowhere") && error.contains("->"),
        "{error}"
    );
    sqlx::query(
        "insert into tidings.subscriber (consumer, instance, host, version, version_since, types, \
         topics, escalation) values ('dead', gen_random_uuid(), 'host 1', '1', now(), '{}', '{}', \
         'park')",
    )
    .execute(&database.pool)
    .await
    .expect("an instance");
    let (code, _, error) = subscribers(&database.url, &["pause", "dead"]);
    assert_eq!(code, 1, "{error}");
    assert!(
        error.contains("have not confirmed") && error.contains("host 1"),
        "{error}"
    );
}

/// Attempts by group.
type Attempts = Arc<Mutex<HashMap<String, usize>>>;

/// A second group handles the same events with the same pauses. Its attempts are the clock.
#[tokio::test(flavor = "multi_thread")]
async fn retries_in_place_and_from_the_table_wait_while_the_subscriber_is_paused() {
    async fn fail(
        Event(_): Event<Changed>,
        State((group, attempts)): State<(String, Attempts)>,
    ) -> Result<(), HandlerError> {
        *attempts.lock().expect("no panic").entry(group).or_default() += 1;
        Err(HandlerError::retry("broken"))
    }
    let often = || {
        let pause = Duration::from_millis(20);
        Retry::exponential(1_000_000, pause..pause)
    };
    for parks in [false, true] {
        let (database, place) = (migrated_database().await, Place::new(1).await);
        let attempts = Attempts::default();
        place.publish(1, 1..=1).await;
        let groups = ["paused", "clock"].map(|word| format!("{word}-{}", place.group));
        let start = |group: &String| {
            let subscriber = place
                .bus
                .subscriber(group)
                .topic::<Changed>(&place.topic)
                .on(fail)
                .inbox(database.pool.clone())
                .state((group.clone(), attempts.clone()))
                .kill_switch(None);
            start!(match parks {
                true => subscriber
                    .retry(Retry::never())
                    .escalation(Escalation::Park(often())),
                false => subscriber.retry(often()),
            })
        };
        let running = [start(&groups[0]), start(&groups[1])];
        let made = |group: &str| {
            let attempts = attempts.lock().expect("no panic");
            attempts.get(group).copied().unwrap_or_default()
        };
        until("both fail", async || {
            groups.iter().all(|group| made(group) > 3).then_some(())
        })
        .await;
        json(&database, &["pause", &groups[0]]);
        // An attempt that has begun may still end.
        running[0]
            .until("no handler runs", |seen| seen.running() == 0)
            .await;
        let (paused, clock) = (made(&groups[0]), made(&groups[1]));
        until("the clock ticks", async || {
            (made(&groups[1]) > clock + 30).then_some(())
        })
        .await;
        assert!(made(&groups[0]) <= paused + 1, "parks: {parks}");
        json(&database, &["resume", &groups[0]]);
        until("it fails again", async || {
            (made(&groups[0]) > paused + 3).then_some(())
        })
        .await;
        for running in running {
            running.stop().await;
        }
    }
}

/// Fails version 2 of the accounts `a1` and `a2` while the switch is on.
async fn while_on(
    Event(changed): Event<Changed>,
    meta: Meta,
    mut tx: Tx,
    State((broken, attempts)): State<(Arc<AtomicBool>, Arc<AtomicUsize>)>,
) -> Result<(), HandlerError> {
    effect(&mut tx, &changed, &meta).await?;
    if changed.account != "a0" && changed.version == 2 && broken.load(Ordering::SeqCst) {
        attempts.fetch_add(1, Ordering::SeqCst);
        return Err(HandlerError::retry(format!("broken {}", changed.account)));
    }
    Ok(())
}

async fn versions(database: &TestDatabase, account: &str) -> Vec<i32> {
    let sql = "select version from effect where account = $1 order by seq";
    sqlx::query_scalar(sql)
        .bind(account)
        .fetch_all(&database.pool)
        .await
        .expect("the query succeeds")
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_events_are_listed_shown_retried_and_discarded_in_order() {
    let (database, place) = (migrated_database().await, Place::new(2).await);
    create_effects(&database.pool).await;
    let (broken, attempts) = (
        Arc::new(AtomicBool::new(true)),
        Arc::<AtomicUsize>::default(),
    );
    let sent = place.publish(3, 1..=5).await;
    // No parked event becomes due by itself.
    let hour = Duration::from_secs(3_600);
    let running = start!(
        place
            .subscriber()
            .on(while_on)
            .inbox(database.pool.clone())
            .state((broken.clone(), attempts.clone()))
            .retry(Retry::never())
            .kill_switch(None)
            .escalation(Escalation::Park(Retry::exponential(10, hour..hour)))
    );
    running
        .until("two accounts wait", |seen| seen.parked() == 8)
        .await;
    let (group, topic) = (place.group.as_str(), place.topic.as_str());
    let key = |account: &str| format!("{topic}/{account}");
    let id_of = |account: &str, version: usize| {
        let index = (version - 1) * 3 + account[1..].parse::<usize>().expect("a number");
        sent[index].id.to_string()
    };

    let listed = json(&database, &["parked", "list", "--group", group]);
    let heads = listed["parked"].as_array().expect("a list");
    assert_eq!(heads.len(), 2, "{listed}");
    for head in heads {
        assert_eq!(
            (&head["events"], &head["consumer"]),
            (&4.into(), &group.into())
        );
        assert!(
            head["error"]
                .as_str()
                .is_some_and(|error| error.contains("broken"))
        );
    }
    let (_, text, _) = subscribers(&database.url, &["parked", "list"]);
    assert!(
        text.contains("broken a1") && text.contains(&key("a2")),
        "{text}"
    );
    let shown = json(&database, &["parked", "show", &key("a1")]);
    assert_eq!(shown["events"].as_array().map(Vec::len), Some(4), "{shown}");
    let (_, text, _) = subscribers(&database.url, &["parked", "show", &id_of("a1", 2)]);
    for part in [
        "error    ",
        "header   ce_id: ",
        "\"version\": 2",
        "attempts 0 since",
        "at offset",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }

    // A later event is discarded while its key waits; the blocking event is not tried.
    let third = id_of("a1", 3);
    let dry = json(&database, &["parked", "discard", &third, "--dry-run"]);
    assert_eq!((&dry["count"], &dry["pending"]), (&1.into(), &0.into()));
    assert_eq!(
        json(&database, &["parked", "list"])["parked"][0]["events"],
        4
    );
    let tried = attempts.load(Ordering::SeqCst);
    let discarded = json(&database, &["parked", "discard", &third, "--yes"]);
    assert_eq!(
        (&discarded["count"], &discarded["pending"]),
        (&1.into(), &0.into())
    );
    assert_eq!(running.statistics.discarded(), 1);
    assert_eq!(
        attempts.load(Ordering::SeqCst),
        tried,
        "nothing is tried by a discard"
    );
    let left = json(&database, &["parked", "show", &key("a1")]);
    assert_eq!(left["events"].as_array().map(Vec::len), Some(3));

    // A retry that fails stays parked, a retry that works releases the key in order.
    let failed = json(&database, &["parked", "retry", &id_of("a1", 5)]);
    assert_eq!(failed["count"], 1, "the blocking event is marked: {failed}");
    assert_eq!(failed["events"][0]["event_id"], id_of("a1", 2).as_str());
    until("it is tried", async || {
        (attempts.load(Ordering::SeqCst) == tried + 1).then_some(())
    })
    .await;
    until("the attempt is stored", async || {
        let shown = json(&database, &["parked", "show", &id_of("a1", 2)]);
        (shown["events"][0]["attempts"] == 1).then_some(())
    })
    .await;
    broken.store(false, Ordering::SeqCst);
    json(
        &database,
        &["parked", "retry", "--group", group, "--reason", "broken a1"],
    );
    until("a1 is handled", async || {
        (versions(&database, "a1").await == [1, 2, 4, 5]).then_some(())
    })
    .await;
    assert_eq!(versions(&database, "a2").await, [1], "the other key waits");

    // The blocking event is discarded, and the later events of the key continue.
    let head = id_of("a2", 2);
    json(&database, &["parked", "discard", &head, "--yes"]);
    until("a2 is handled", async || {
        (versions(&database, "a2").await == [1, 3, 4, 5]).then_some(())
    })
    .await;
    until("nothing is parked", async || {
        let listed = json(&database, &["parked", "list"]);
        (listed["parked"] == Value::Array(Vec::new())).then_some(())
    })
    .await;
    place.publish(3, 6..=6).await;
    until("the keys are as before", async || {
        (versions(&database, "a2").await.last() == Some(&6)).then_some(())
    })
    .await;
    running.stop().await;
    assert_eq!(versions(&database, "a0").await, [1, 2, 3, 4, 5, 6]);
    let (code, _, error) = subscribers(&database.url, &["parked", "discard", &head, "--yes"]);
    assert_eq!(code, 3);
    assert!(
        error.contains("no subscriber has parked such an event"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_about_a_parked_event_waits_for_a_paused_or_stopped_subscriber() {
    let (database, place) = (migrated_database().await, Place::new(1).await);
    create_effects(&database.pool).await;
    let (broken, attempts) = (
        Arc::new(AtomicBool::new(true)),
        Arc::<AtomicUsize>::default(),
    );
    place.publish(2, 1..=3).await;
    let hour = Duration::from_secs(3_600);
    let build = || {
        place
            .subscriber()
            .on(while_on)
            .inbox(database.pool.clone())
            .state((broken.clone(), attempts.clone()))
            .retry(Retry::never())
            .kill_switch(None)
            .escalation(Escalation::Park(Retry::exponential(10, hour..hour)))
    };
    let running = start!(build());
    running
        .until("an account waits", |seen| seen.parked() == 2)
        .await;
    let group = place.group.as_str();
    json(&database, &["pause", group]);
    broken.store(false, Ordering::SeqCst);
    let retried = json(&database, &["parked", "retry", "--group", group, "--all"]);
    assert_eq!(
        (&retried["count"], &retried["pending"]),
        (&1.into(), &1.into())
    );
    assert_eq!(versions(&database, "a1").await, [1]);
    running.stop().await;
    // The mark outlives the member, and the next one executes it once it is resumed.
    let running = start!(build());
    running
        .until("it starts paused", |seen| {
            seen.state() == SubscriberState::PausedByOperator
        })
        .await;
    json(&database, &["resume", group]);
    until("a1 is handled", async || {
        (versions(&database, "a1").await == [1, 2, 3]).then_some(())
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_without_the_right_to_resume_is_told_the_grant() {
    let database = migrated_database().await;
    let rights = Rights::of(&database, &["operator"]);
    rights.grant(&database.pool).await;
    run(
        &database.pool,
        "insert into tidings.subscriber_parked (consumer, topic, partition, record_offset, \
         record_timestamp, key) values ('stock', 'order', 0, 1, 0, '7')"
            .into(),
    )
    .await;
    let url = rights.url(&database);
    let (code, _, error) = subscribers(&url, &["pause", "stock"]);
    assert_eq!(code, 0, "{error}");
    let role = &rights.role;
    run(
        &database.pool,
        format!("revoke delete on tidings.subscriber_control from {role}"),
    )
    .await;
    let (code, _, error) = subscribers(&url, &["resume", "stock"]);
    assert_eq!(code, 3, "{error}");
    assert!(
        error.contains("grant it select, insert and delete on"),
        "{error}"
    );
    rights.drop_role(&database.pool).await;
}
