//! Publication of events by handlers.

use serde::{Deserialize, Serialize};
use tidings::DomainEvent;
use tidings::subscriber::{Event, HandlerError, Tx};

use crate::support::place::{Changed, Place, start};
use crate::support::services::migrated_database;

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "audit", id = "account")]
struct Audited {
    account: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_a_handler_returns_is_in_the_outbox_if_and_only_if_its_effect_is_with_its_cause()
 {
    async fn audit(
        Event(changed): Event<Changed>,
        mut tx: Tx,
    ) -> Result<(Audited, Option<Audited>), HandlerError> {
        tx.publish(&Audited {
            account: "first".into(),
        })
        .await?;
        if changed.version == 2 {
            return Err(HandlerError::dead_letter("rolled back"));
        }
        Ok((
            Audited {
                account: changed.account,
            },
            None,
        ))
    }
    let (database, place) = (migrated_database().await, Place::new(1).await);
    let mut cause = place.envelope(&Changed {
        account: "a".into(),
        version: 1,
    });
    cause.headers.insert("correlationid", "conversation");
    cause.headers.insert("traceparent", "00-trace");
    place
        .send(&[
            cause.clone(),
            place.envelope(&Changed {
                account: "a".into(),
                version: 2,
            }),
        ])
        .await;
    let running = start!(place.subscriber().on(audit).inbox(database.pool.clone()));
    running
        .until("both have ended", |seen| {
            seen.handled() == 1 && seen.dead_lettered() == 1
        })
        .await;
    running.stop().await;
    let rows: Vec<(String, String, String, String)> = sqlx::query_as(
        "select aggregateid, headers ->> 'causationid', headers ->> 'correlationid', \
         headers ->> 'traceparent' from tidings.outbox order by seq",
    )
    .fetch_all(&database.pool)
    .await
    .expect("the query succeeds");
    let expected = |account: &str| {
        (
            account.to_owned(),
            cause.id.to_string(),
            "conversation".to_owned(),
            "00-trace".to_owned(),
        )
    };
    assert_eq!(rows, [expected("first"), expected("a")]);
}
