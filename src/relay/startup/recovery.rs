//! Choice of the start position, made once no other relay can change it.
//!
//! With delivery exactly once, the order of the steps is essential:
//!
//! 1. Take the lease and its epoch.
//! 2. Fence off every earlier producer, which ends their open transactions.
//! 3. Read the position from the relay's own topic.
//! 4. Compare it with its copy in Postgres.
//!
//! Reading before fencing would repeat events that an earlier leader commits in between.

use std::sync::Arc;
#[cfg(feature = "cli")]
use std::time::Duration;

use futures_util::future::try_join_all;
#[cfg(feature = "cli")]
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use super::{continuity, names::KafkaNames, position_topic, server::Server};
#[cfg(feature = "cli")]
use crate::kafka::{Cluster, Topic};
#[cfg(feature = "cli")]
use crate::relay::leadership::relay_store;
use crate::{
    failpoint::{self, Step},
    kafka::{Failure, FenceError, OVERDUE, Producer, TopicError, bounded},
    relay::{
        Delivery, RelayOptions,
        error::Interruption,
        leadership::relay_store::{RelayStore, Saved},
        monitor::metrics::{Component, RelayMetrics},
        pipeline::publisher::EventPublisher,
        position::{Foreign, GivenUp, Identity, Journal, Position, Recorded},
    },
};

/// Start position of a relay.
pub(crate) struct Start {
    pub(crate) position: Position,
    /// The number of the position's record.
    pub(crate) number: u64,
    /// The operator moved the relay here. The position is stored before anything is published.
    pub(crate) moved: bool,
}

/// Time limit of each request of a preview.
#[cfg(feature = "cli")]
const PREVIEW_TIMEOUT: Duration = Duration::from_secs(10);

/// Attempts to fence with the same client before the client is replaced. An attempt takes up to 30
/// seconds.
const FENCE_TRIES: u32 = 3;

/// Context of a session for the choice of the start position.
#[derive(Clone, Copy)]
pub(crate) struct Session<'s> {
    pub(crate) options: &'s RelayOptions,
    pub(crate) server: &'s Server,
    pub(crate) names: &'s KafkaNames,
    /// The id of the Kafka cluster.
    pub(crate) cluster: &'s str,
    pub(crate) observer: &'s RelayMetrics,
    /// Cancelled once the lease is no longer certain.
    pub(crate) lost: &'s CancellationToken,
}

/// Chooses the start position, and configures the sink to write positions from there on.
///
/// # Errors
///
/// Returns a refusal if Kafka or the database has lost published events or positions, and a
/// transient error otherwise.
pub(crate) async fn resume(
    session: Session<'_>,
    saved: Saved,
    relay_store: &mut RelayStore,
    forwarder: &mut EventPublisher,
) -> Result<Start, Interruption> {
    let Session {
        options,
        server,
        names,
        cluster,
        ..
    } = session;
    continuity::require_same_database(options, relay_store.session(), server, &saved).await?;
    let nothing = (None, Foreign::default());
    let (recorded, foreign) = match options.delivery {
        Delivery::ExactlyOnce => {
            fence(&session, forwarder.sink().producers()).await?;
            failpoint::reached(Step::Fenced);
            let exists = position_topic::find_or_create(options, names, forwarder).await?;
            if exists {
                let limit = forwarder
                    .sink()
                    .producers()
                    .iter()
                    .map(|producer| producer.transaction_timeout())
                    .max()
                    .unwrap_or_default();
                position_topic::read_after_fencing(
                    &session,
                    &saved,
                    (relay_store.seal(), relay_store.signs()),
                    limit,
                )
                .await?
            } else {
                nothing
            }
        }
        // The relay may have delivered exactly once before. Then its last position is in the topic,
        // at most a second newer than the one in the row.
        Delivery::AtLeastOnce if saved.number > 0 && saved.cluster.as_deref() == Some(cluster) => {
            position_topic::read(
                options,
                names,
                &saved,
                (relay_store.seal(), relay_store.signs()),
            )
            .await?
        }
        Delivery::AtLeastOnce => nothing,
    };
    let (recorded, foreign, adopted) = match &saved.adopts {
        // A position in this database's own topic would show that the relay has published here
        // since.
        Some(before) if recorded.is_none() && saved.moved_to.is_none() => {
            let (recorded, foreign) =
                before_adoption(&session, before, &saved, relay_store, forwarder).await?;
            (recorded, foreign, true)
        }
        _ => (recorded, foreign, false),
    };
    let number = recorded
        .as_ref()
        .map_or(0, |recorded| recorded.number)
        .max(saved.number);
    let start = match saved.moved_to {
        Some(position) => {
            tracing::warn!("continues from the position that the operator moved the relay to");
            // Released events stay released.
            let released = recorded.map_or_else(Vec::new, |recorded| recorded.position.released);
            // Retention deletes only from the relay's own outbox.
            let forgone = if options.debezium.is_none() {
                position.forgone
            } else {
                0
            };
            let position = Position {
                released,
                forgone,
                ..position
            };
            Start {
                position,
                number,
                moved: true,
            }
        }
        None => {
            let (given_up, floor) = (
                saved.given_up.clone(),
                if options.debezium.is_none() {
                    relay_store.floor().await?
                } else {
                    0
                },
            );
            let mirror = saved.position.clone();
            let (position, identity) = choose(options, names, cluster, saved, recorded, &foreign)?;
            match identity {
                Some(_) if adopted => {
                    let position = position.adopted();
                    let (here, session) = (&server.identity, relay_store.session());
                    let position = continuity::require_kept_commits(
                        options,
                        session,
                        server,
                        here,
                        position,
                        mirror.as_ref(),
                    )
                    .await?;
                    require_kept(options, &position, floor)?;
                    tracing::warn!(
                        "continues the outbox of another database, as confirmed by the operator"
                    );
                    Start {
                        moved: true,
                        ..give_up(position, number, given_up)
                    }
                }
                Some(identity) => {
                    let session = relay_store.session();
                    let position = continuity::require_kept_commits(
                        options,
                        session,
                        server,
                        &identity,
                        position,
                        mirror.as_ref(),
                    )
                    .await?;
                    require_kept(options, &position, floor)?;
                    give_up(position, number, given_up)
                }
                // The first start publishes everything that the outbox still contains.
                None => Start {
                    position: Position::rewound_to_the_start(floor),
                    number,
                    moved: false,
                },
            }
        }
    };
    relay_store
        .begin(options, &server.identity, cluster)
        .await?;
    if options.delivery == Delivery::ExactlyOnce {
        let journal = Journal::new(
            server.identity.clone(),
            relay_store.epoch(),
            start.number,
            relay_store.seal().clone(),
        );
        forwarder
            .sink_mut()
            .write_positions(names.topic.clone(), journal);
    }
    Ok(start)
}

/// Returns the position in the topic of the database that this one continues.
async fn before_adoption(
    session: &Session<'_>,
    before: &Identity,
    saved: &Saved,
    relay_store: &RelayStore,
    forwarder: &EventPublisher,
) -> Result<(Option<Recorded>, Foreign), Interruption> {
    let Session {
        options, cluster, ..
    } = session;
    let nothing = Ok((None, Foreign::default()));
    if saved.number == 0 || saved.cluster.as_deref() != Some(*cluster) {
        return nothing;
    }
    let names = KafkaNames::new(&options.name, before, &options.schema);
    match forwarder.topics().partitions(&names.topic).await {
        Ok(_) => {
            position_topic::read(
                options,
                &names,
                saved,
                (relay_store.seal(), relay_store.signs()),
            )
            .await
        }
        Err(TopicError::Unknown(_)) => nothing,
        Err(error) => Err(error.into()),
    }
}

/// Returns the newer position of the topic's and the row's, unless the topic has lost positions.
/// Records that another program wrote to the topic (`foreign`) never count.
fn choose(
    options: &RelayOptions,
    names: &KafkaNames,
    cluster: &str,
    saved: Saved,
    recorded: Option<Recorded>,
    foreign: &Foreign,
) -> Result<(Position, Option<Identity>), Interruption> {
    let name = &options.name;
    let refused = |what: String| {
        Err(Interruption::Refused(format!(
            "{what}. Nothing was published since. `tidings relay rewind --to-mirror --name {name}` \
             continues from the position in the database (events that Kafka lost stay lost, and \
             some may repeat), `tidings relay rewind --since TIME --name {name}` publishes younger \
             events again (each has --dry-run)"
        )))
    };
    let Some(mirror) = saved.position else {
        if recorded.is_none() && foreign.records > 0 {
            return Err(Interruption::Refused(format!(
                "topic `{}` holds {} records that relay `{name}` has not signed, and the database \
                 has no position of the relay: another program wrote them, or an earlier version \
                 of a relay that was forgotten since. Nothing was published since. `tidings relay \
                 rewind --all --name {name}` publishes everything that the outbox contains (events \
                 that were published before are repeated), `tidings relay skip --all --name \
                 {name}` continues with new events (each has --dry-run)",
                names.topic, foreign.records
            )));
        }
        return Ok(recorded.map_or((Position::start(), None), |recorded| {
            (recorded.position, Some(recorded.identity))
        }));
    };
    // Only a position that came from the topic is evidence about the topic.
    let from_topic = saved.number > 0 && options.delivery == Delivery::ExactlyOnce;
    if from_topic
        && saved
            .cluster
            .as_deref()
            .is_some_and(|before| before != cluster)
    {
        return refused(format!(
            "relay `{name}` published to Kafka cluster {} before, and this one is {cluster}",
            saved.cluster.as_deref().unwrap_or("?")
        ));
    }
    match recorded {
        // The database's own copy needs no signature. An unsigned record was written by an earlier
        // version, in between or before any signature.
        Some(Recorded {
            signed: false,
            number,
            ..
        }) if from_topic && number == saved.number => Ok((mirror, saved.identity)),
        _ if from_topic
            && foreign.known
            && recorded
                .as_ref()
                .is_none_or(|recorded| recorded.number < saved.number) =>
        {
            Ok((mirror, saved.identity))
        }
        None if from_topic => refused(format!(
            "Kafka has lost the positions of relay `{name}`: topic `{}` is missing or empty, and \
             the database refers to its record {}",
            names.topic, saved.number
        )),
        // Numbers continue from one epoch to the next. The row's epoch is no evidence: a leader
        // stores its own epoch before its first record.
        Some(recorded) if from_topic && recorded.number < saved.number => refused(format!(
            "Kafka has lost data: topic `{}` ends with record {} of relay `{name}`, and the \
             database refers to record {}",
            names.topic, recorded.number, saved.number
        )),
        Some(recorded)
            if from_topic || (recorded.epoch, recorded.number) >= (saved.epoch, saved.number) =>
        {
            Ok((recorded.position, Some(recorded.identity)))
        }
        Some(_) | None => Ok((mirror, saved.identity)),
    }
}

/// Checks that the outbox still contains every event that the position has not published.
pub(crate) fn require_kept(
    options: &RelayOptions,
    position: &Position,
    floor: u64,
) -> Result<(), Interruption> {
    if !position.needs_below(floor) {
        return Ok(());
    }
    let name = &options.name;
    Err(Interruption::Refused(format!(
        "retention has deleted events that relay `{name}` has not published (of transactions below \
         {floor}): the relay was missing from the database's table of relays at that time, because \
         it was forgotten, or because the table is older than its positions in Kafka. Those events \
         are lost. `tidings relay rewind --all --name {name}` publishes everything that the outbox \
         still contains, `tidings relay skip --all --name {name}` continues with new events (each \
         has --dry-run)"
    )))
}

/// Returns the start at the position without the events that the operator has given up.
fn give_up(mut position: Position, number: u64, events: Vec<GivenUp>) -> Start {
    let moved = !events.is_empty();
    for event in events {
        tracing::warn!(
            seq = event.seq,
            "leaves out an event that the operator has given up"
        );
        position.give_up(event);
    }
    Start {
        position,
        number,
        moved,
    }
}

/// Makes this relay the only producer with its transactional ids.
async fn fence(session: &Session<'_>, producers: &[Arc<Producer>]) -> Result<(), Interruption> {
    let ids = session.names.transactional_ids.iter();
    try_join_all(
        ids.zip(producers)
            .map(|(id, producer)| fence_one(session, id, producer)),
    )
    .await?;
    Ok(())
}

async fn fence_one(
    session: &Session<'_>,
    id: &str,
    producer: &Arc<Producer>,
) -> Result<(), Interruption> {
    let Session { observer, lost, .. } = session;
    let (mut asked, mut standing) = (0, None);
    loop {
        asked += 1;
        let asks = producer.clone();
        let fenced = tokio::select! {
            fenced = bounded(
                "init_transactions",
                Producer::FENCE_TIMEOUT + OVERDUE,
                move || asks.fence(),
            ) => fenced,
            () = lost.cancelled() => return Err(Interruption::LeaseLost),
        };
        match fenced {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(FenceError::NoAnswer)) => {
                let text = "the transaction coordinator does not answer; the relay waits for it";
                tracing::warn!("{text}");
                observer.pulse().moved();
                standing.get_or_insert_with(|| observer.hold(Component::Kafka, text));
                if asked == FENCE_TRIES {
                    return Err(Interruption::Kafka(text.into()));
                }
            }
            Ok(Err(FenceError::TimeoutTooLong)) => {
                return Err(Interruption::TransactionTimeout(
                    producer.transaction_timeout(),
                ));
            }
            Ok(Err(FenceError::Failed(Failure::Fenced))) => {
                return Err(Interruption::Kafka(format!(
                    "another relay has started to produce with transactional id `{id}` at the same \
                     time"
                )));
            }
            Ok(Err(FenceError::Failed(
                Failure::Broken(reason) | Failure::Refused(reason) | Failure::Untimely(reason),
            ))) => {
                return Err(Interruption::Kafka(format!(
                    "cannot become the only producer with transactional id `{id}`: {reason}. If \
                     the cluster enforces ACLs, grant Write on it to the relay's principal, see \
                     docs/operating.md"
                )));
            }
            Err(unanswered) => return Err(Interruption::Kafka(unanswered.to_string())),
        }
    }
}

/// Examines the positions in Kafka as a start would. Nothing is fenced, created or stored.
///
/// # Errors
///
/// Returns the refusal of the start, or an error if a broker does not answer or the connection is
/// lost.
#[cfg(feature = "cli")]
pub(crate) async fn preview(
    options: &RelayOptions,
    session: &mut PgConnection,
    server: &Server,
    saved: Saved,
) -> Result<String, Interruption> {
    let names = KafkaNames::new(&options.name, &server.identity, &options.schema);
    let topics = std::slice::from_ref(&names.topic);
    let cluster = Cluster::ask(&options.kafka, topics, PREVIEW_TIMEOUT)
        .await
        .map_err(Interruption::Kafka)?;
    let (recorded, foreign) = match cluster.topics.get(&names.topic) {
        Some(Topic::There { partitions: 1, .. }) => {
            let (seal, signs) = relay_store::known_seal(options, session).await?;
            position_topic::read(options, &names, &saved, (&seal, signs)).await?
        }
        Some(Topic::There { partitions, .. }) => {
            return Err(position_topic::wrong_partitions(&names, partitions));
        }
        Some(Topic::Refused(reason)) => return Err(Interruption::Kafka(reason.clone())),
        Some(Topic::Missing) | None => (None, Foreign::default()),
    };
    let id = cluster
        .id
        .or_else(|| saved.cluster.clone())
        .unwrap_or_default();
    let mirror = saved.position.clone();
    if let (position, Some(identity)) = choose(options, &names, &id, saved, recorded, &foreign)? {
        let kept = continuity::require_kept_commits(
            options,
            session,
            server,
            &identity,
            position,
            mirror.as_ref(),
        );
        let position = kept.await?;
        let schema = format!("\"{}\"", options.schema);
        let floor = if options.debezium.is_none() {
            relay_store::floor(session, &schema, "").await?
        } else {
            0
        };
        require_kept(options, &position, floor)?;
    }
    Ok(names.topic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::startup::names::KnownNames;

    fn options() -> RelayOptions {
        let database = crate::postgres::Settings::parse("postgres://a@localhost/b").expect("a URL");
        RelayOptions::new(database, crate::kafka::Settings::default())
    }

    fn at(log: u64) -> Position {
        Position {
            log: crate::postgres::Lsn(log),
            ..Position::start()
        }
    }

    fn identity() -> Identity {
        Identity {
            system: "1".into(),
            database: 2,
            timeline: 1,
        }
    }

    /// Row and topic as (epoch, number), or `None` if missing. Returns the source of the chosen
    /// position (`row`, `topic` or `start`) or the refusal.
    fn chosen(
        row: Option<(i64, u64)>,
        topic: Option<(i64, u64)>,
        cluster: &str,
    ) -> Result<&'static str, String> {
        chosen_of(
            row,
            topic.map(|(epoch, number)| (epoch, number, true)),
            &Foreign::default(),
            cluster,
        )
    }

    /// The same for a record that is signed or unsigned, with foreign records in the topic.
    fn chosen_of(
        row: Option<(i64, u64)>,
        topic: Option<(i64, u64, bool)>,
        foreign: &Foreign,
        cluster: &str,
    ) -> Result<&'static str, String> {
        let saved = row.map_or_else(Saved::default, |(epoch, number)| Saved {
            identity: Some(identity()),
            position: Some(at(1)),
            epoch,
            number,
            cluster: Some("ours".into()),
            names: KnownNames::default(),
            adopts: None,
            moved_to: None,
            given_up: Vec::new(),
            event_source: String::new(),
        });
        let recorded = topic.map(|(epoch, number, signed)| Recorded {
            position: at(2),
            identity: identity(),
            epoch,
            number,
            signed,
        });
        let names = KafkaNames {
            transactional_ids: ["t".into(), "t-2".into(), "t-3".into()],
            topic: "p".into(),
        };
        match choose(&options(), &names, cluster, saved, recorded, foreign) {
            Ok((position, _)) if position == at(1) => Ok("row"),
            Ok((position, _)) if position == at(2) => Ok("topic"),
            Ok(_) => Ok("start"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_newer_position_is_gone_on_from_and_a_topic_that_lost_some_is_refused() {
        assert_eq!(chosen(None, None, "ours"), Ok("start"));
        assert_eq!(chosen(None, Some((1, 5)), "ours"), Ok("topic"));
        assert_eq!(chosen(Some((3, 7)), Some((3, 7)), "ours"), Ok("topic"));
        assert_eq!(chosen(Some((3, 7)), Some((3, 9)), "ours"), Ok("topic"));
        // A leader stored its row and was killed before its first batch.
        assert_eq!(chosen(Some((4, 7)), Some((3, 7)), "ours"), Ok("topic"));
        // The row was stored by delivery at least once, before or after the topic's record.
        assert_eq!(chosen(Some((3, 0)), None, "ours"), Ok("row"));
        assert_eq!(chosen(Some((3, 0)), Some((2, 9)), "ours"), Ok("row"));
        assert_eq!(chosen(Some((3, 0)), Some((4, 10)), "ours"), Ok("topic"));
        // A leader stored its epoch and was killed before its first record.
        assert_eq!(chosen(Some((4, 7)), Some((3, 7)), "ours"), Ok("topic"));
        // Kafka has lost positions.
        assert!(
            chosen(Some((3, 7)), None, "ours").is_err_and(|text| text.contains("missing or empty"))
        );
        assert!(
            chosen(Some((3, 7)), Some((3, 6)), "ours")
                .is_err_and(|text| text.contains("ends with record 6"))
        );
        assert!(
            chosen(Some((3, 7)), Some((3, 7)), "theirs")
                .is_err_and(|text| text.contains("this one is theirs"))
        );
    }

    #[test]
    fn what_another_program_wrote_is_not_gone_on_from() {
        let foreign = |known| Foreign {
            records: 2,
            last: 9,
            known,
        };
        // The relay has not started yet, and another program wrote to its topic.
        assert!(
            chosen_of(None, None, &foreign(false), "ours")
                .is_err_and(|text| text.contains("has not signed") && text.contains("rewind --all"))
        );
        assert_eq!(
            chosen_of(Some((3, 7)), Some((3, 7, true)), &foreign(true), "ours"),
            Ok("topic")
        );
        assert_eq!(
            chosen_of(Some((3, 7)), Some((3, 9, true)), &foreign(false), "ours"),
            Ok("topic")
        );
        // Kafka has lost the signed records, and other programs wrote other records.
        assert!(
            chosen_of(Some((3, 7)), None, &foreign(false), "ours")
                .is_err_and(|text| text.contains("missing or empty"))
        );
        // An earlier version ran since, and wrote the record that the database refers to.
        assert_eq!(
            chosen_of(Some((3, 7)), Some((2, 5, true)), &foreign(true), "ours"),
            Ok("row")
        );
        // An earlier version wrote all records.
        assert_eq!(
            chosen_of(
                Some((3, 7)),
                Some((3, 7, false)),
                &Foreign::default(),
                "ours"
            ),
            Ok("row")
        );
        assert_eq!(
            chosen_of(
                Some((3, 7)),
                Some((3, 9, false)),
                &Foreign::default(),
                "ours"
            ),
            Ok("topic")
        );
    }
}
