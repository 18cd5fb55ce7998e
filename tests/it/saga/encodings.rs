//! Sagas in databases that cannot store each text that they receive.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidings::saga::{Saga, SagaStatus};
use tidings::subscriber::{HandlerError, Retry, Tx};
use tidings::{Bus, kafka};

use super::local::Service;
use super::operator::shown;
use crate::support::place::{refused, until};
use crate::support::services::{TestDatabase, encoded_database, migrated_database};

/// A letter of LATIN1, a letter that LATIN1 does not have, and NUL.
const HOSTILE: &str = "\u{e9}\u{20ac}\0";

/// The same text as a column of text stores it.
fn stored(encoding: &str) -> &'static str {
    match encoding {
        "LATIN1" => r"\303\251\342\202\254",
        _ => "\u{e9}\u{20ac}",
    }
}

async fn database(encoding: &str) -> TestDatabase {
    match encoding {
        "UTF8" => migrated_database().await,
        other => encoded_database(other).await,
    }
}

/// State with text from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    run: u32,
    text: String,
}

fn note(run: u32) -> Note {
    let text = HOSTILE.into();
    Note { run, text }
}

/// A command with text from outside.
#[derive(Clone, Debug, Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "note", id = "run")]
struct WriteNote {
    run: u32,
    text: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_whose_error_cannot_be_stored_as_it_is_ends_like_any_other() {
    for encoding in ["LATIN1", "SQL_ASCII", "UTF8"] {
        let mut service = Service::on(database(encoding).await).await;
        let refused = Saga::<Note>::new("refused")
            .step("undo")
            .local(async |note, _: Tx| Ok(note))
            .compensate_local(async |_, _: Tx| {
                Err::<Note, _>(HandlerError::dead_letter(format!("undo {HOSTILE}")))
            })
            .retry(Retry::never())
            .step("refuse")
            .local(async |_, _: Tx| {
                Err::<Note, _>(HandlerError::dead_letter(format!("refuse {HOSTILE}")))
            });
        let retried = Saga::<Note>::new("retried")
            .step("retry")
            .local(async |note, _: Tx| match note.run {
                1 => Err(HandlerError::retry(format!("retry {HOSTILE}"))),
                _ => Ok(note),
            })
            .retry(Retry::exponential(
                2,
                Duration::from_secs(3600)..Duration::from_secs(3600),
            ));
        let (refused_id, retried_id) = (
            service.start(&refused, note(0)).await,
            service.start(&retried, note(1)).await,
        );
        service.run(&refused);
        service.run(&retried);
        let run = service.until(refused_id, SagaStatus::Failed).await;
        let failure = run.failure.expect("the failed step").error;
        let text = stored(encoding);
        assert_eq!(failure, format!("refuse {text}"), "{encoding}");
        let error = run.error.expect("an error");
        assert!(
            error.contains(&format!("undo: undo {text}")),
            "{encoding}: {error}"
        );
        let error = until("the attempt has an error", async || {
            service.sagas.get(retried_id).await.expect("a saga")?.error
        })
        .await;
        assert_eq!(error, format!("retry: retry {text}"), "{encoding}");
        let ended: String = sqlx::query_scalar(
            "select payload::text from tidings.outbox where type = 'SagaFailed'",
        )
        .fetch_one(&service.database.pool)
        .await
        .expect("the end is published");
        let ended: serde_json::Value = serde_json::from_str(&ended).expect("JSON");
        assert_eq!(ended["error"], "refuse \u{e9}\u{20ac}", "{encoding}");
        service.stop().await;
    }
}

/// State and command contain the text unchanged, because JSON has escapes for it.
#[tokio::test(flavor = "multi_thread")]
async fn state_and_commands_keep_text_that_the_database_cannot_encode() {
    for encoding in ["LATIN1", "SQL_ASCII", "UTF8"] {
        let mut service = Service::on(database(encoding).await).await;
        let saga = Saga::<Note>::new("write")
            .step("check")
            .local(async |note, _: Tx| match note.text.as_str() {
                HOSTILE => Ok(note),
                other => Err(HandlerError::dead_letter(format!("{other:?}"))),
            })
            .step("write")
            .command(|note: &Note| WriteNote {
                run: note.run,
                text: note.text.clone(),
            });
        let id = service.start(&saga, note(7)).await;
        service.run(&saga);
        let run = service.until(id, SagaStatus::Completed).await;
        assert_eq!(run.state["text"], HOSTILE, "{encoding}");
        let command: String =
            sqlx::query_scalar("select payload::text from tidings.outbox where type = 'WriteNote'")
                .fetch_one(&service.database.pool)
                .await
                .expect("the command is published");
        let command: WriteNote = serde_json::from_str(&command).expect("a command");
        assert_eq!(command.text, HOSTILE, "{encoding}");
        let shown = shown(&service.database, &id.to_string()).await;
        assert_eq!(shown["state"]["text"], HOSTILE, "{encoding}");
        service.stop().await;
    }
}

/// The reason quotes the state.
#[tokio::test(flavor = "multi_thread")]
async fn an_obstacle_that_cannot_be_stored_as_it_is_is_listed() {
    #[derive(Clone, Serialize, Deserialize)]
    enum Known {
        One,
    }
    for encoding in ["LATIN1", "SQL_ASCII", "UTF8"] {
        let mut service = Service::on(database(encoding).await).await;
        let foreign = Saga::<String>::new("known")
            .step("only")
            .command(|text: &String| WriteNote {
                run: 0,
                text: text.clone(),
            });
        let saga = Saga::<Known>::new("known")
            .step("only")
            .local(async |known, _: Tx| Ok(known));
        let (unread, own) = (
            service.start(&foreign, HOSTILE.to_owned()).await,
            service.start(&saga, Known::One).await,
        );
        // Only the check of open sagas finds a saga that is not due.
        let later =
            sqlx::query("update tidings.saga set due_at = due_at + interval '1 day' where id = $1");
        let later = later.bind(unread).execute(&service.database.pool).await;
        later.expect("the update succeeds");
        service.run(&saga);
        service.until(own, SagaStatus::Completed).await;
        let obstacle = until("the saga is reported", async || {
            shown(&service.database, &unread.to_string()).await["obstacle"]
                .as_str()
                .map(str::to_owned)
        })
        .await;
        assert!(
            obstacle.contains("cannot read its state") && obstacle.contains(stored(encoding)),
            "{encoding}: {obstacle}"
        );
        service.stop().await;
    }
}

/// A command whose type LATIN1 cannot represent.
#[derive(Clone, Debug, Serialize, Deserialize, tidings::DomainEvent)]
#[event(aggregate = "note", id = "run", type = "Pay\u{20ac}")]
struct PayEuro {
    run: u32,
}

/// The same statement would fail at each attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_saga_with_a_name_that_the_database_cannot_store_is_refused_at_the_start() {
    let database = database("LATIN1").await;
    let saga = Saga::<Note>::new("pay")
        .step("pay")
        .command(|note: &Note| PayEuro { run: note.run });
    let bus = Bus::new(kafka::Settings {
        brokers: "127.0.0.1:1".into(),
        ..Default::default()
    });
    let subscriber = bus
        .subscriber::<()>("service")
        .saga(saga)
        .inbox(database.pool.clone());
    let error = refused(subscriber.run(Default::default())).await;
    assert!(
        error.contains("saga `pay` cannot be registered")
            && error.contains("the database cannot store one of its names"),
        "{error}"
    );
}
