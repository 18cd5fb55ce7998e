//! The start order: where a relay goes on, decided only once nobody else can move it.
//!
//! With delivery exactly once the order is all: the lease and its epoch → fence off every earlier producer, which ends what it left open →
//! read the position from the relay's own topic → compare it with its copy in Postgres. Reading before fencing repeats what an
//! earlier leader commits in between.

use std::sync::Arc;
#[cfg(feature = "cli")]
use std::time::Duration;

use futures_util::future::try_join_all;
#[cfg(feature = "cli")]
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

#[cfg(feature = "cli")]
use super::ledger;
use super::{
    Delivery, RelayOptions, continuity,
    error::Interruption,
    forward::Forwarder,
    ledger::{Ledger, Saved},
    names::KafkaNames,
    observe::{Observer, Part},
    position::{Foreign, GivenUp, Identity, Journal, Position, Recorded},
    position_topic,
    server::Server,
};
#[cfg(feature = "cli")]
use crate::kafka::{Cluster, Topic};
use crate::{
    failpoint::{self, Step},
    kafka::{Failure, FenceError, OVERDUE, Producer, TopicError, bounded},
};

/// Where a relay goes on.
pub(super) struct Start {
    pub(super) position: Position,
    /// The number of the position's record.
    pub(super) number: u64,
    /// The operator moved it here: it is stored before anything is published.
    pub(super) moved: bool,
}

/// How long each question of a preview may take.
#[cfg(feature = "cli")]
const PREVIEW_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the coordinator is asked by the same client before that is replaced. A question takes up to 30 seconds.
const FENCE_TRIES: u32 = 3;

/// What a session knows by the time it asks where to go on.
#[derive(Clone, Copy)]
pub(super) struct Session<'s> {
    pub(super) options: &'s RelayOptions,
    pub(super) server: &'s Server,
    pub(super) names: &'s KafkaNames,
    /// Kafka's own id.
    pub(super) cluster: &'s str,
    pub(super) observer: &'s Observer,
    /// Cancelled once the lease is not certain any more.
    pub(super) lost: &'s CancellationToken,
}

/// Decides where the relay goes on, and has the sink write positions after it.
///
/// # Errors
/// A refusal when Kafka or the database has lost what was published; what passes by itself otherwise.
pub(super) async fn resume(
    session: Session<'_>,
    saved: Saved,
    ledger: &mut Ledger,
    forwarder: &mut Forwarder,
) -> Result<Start, Interruption> {
    let Session { options, server, names, cluster, .. } = session;
    continuity::require_same_database(options, ledger.session(), server, &saved).await?;
    let nothing = (None, Foreign::default());
    let (recorded, foreign) = match options.delivery {
        Delivery::ExactlyOnce => {
            fence(&session, forwarder.sink().producers()).await?;
            failpoint::reached(Step::Fenced);
            let exists = position_topic::find_or_create(options, names, forwarder).await?;
            if exists {
                let limit = forwarder.sink().producers().iter().map(|producer| producer.transaction_timeout()).max().unwrap_or_default();
                position_topic::read_after_fencing(&session, &saved, (ledger.seal(), ledger.signs()), limit).await?
            } else {
                nothing
            }
        }
        // A relay that delivered exactly once before: its last position is in the topic, a second newer than the row's at most.
        Delivery::AtLeastOnce if saved.number > 0 && saved.cluster.as_deref() == Some(cluster) => {
            position_topic::read(options, names, &saved, (ledger.seal(), ledger.signs())).await?
        }
        Delivery::AtLeastOnce => nothing,
    };
    let (recorded, foreign, adopted) = match &saved.adopts {
        // It has published here since.
        Some(before) if recorded.is_none() && saved.moved_to.is_none() => {
            let (recorded, foreign) = before_adoption(&session, before, &saved, ledger, forwarder).await?;
            (recorded, foreign, true)
        }
        _ => (recorded, foreign, false),
    };
    let number = recorded.as_ref().map_or(0, |recorded| recorded.number).max(saved.number);
    let start = match saved.moved_to {
        Some(position) => {
            tracing::warn!("goes on from where the operator has moved it to");
            // What was released stays released.
            let released = recorded.map_or_else(Vec::new, |recorded| recorded.position.released);
            // What retention has deleted was the outbox's.
            let forgone = if options.debezium.is_none() { position.forgone } else { 0 };
            let position = Position { released, forgone, ..position };
            Start { position, number, moved: true }
        }
        None => {
            let (given_up, floor) = (saved.given_up.clone(), if options.debezium.is_none() { ledger.floor().await? } else { 0 });
            let mirror = saved.position.clone();
            let (position, identity) = choose(options, names, cluster, saved, recorded, &foreign)?;
            match identity {
                Some(_) if adopted => {
                    let position = position.adopted();
                    let (here, session) = (&server.identity, ledger.session());
                    let position = continuity::require_kept_commits(options, session, server, here, position, mirror.as_ref()).await?;
                    require_kept(options, &position, floor)?;
                    tracing::warn!("continues the outbox of another database, as the operator has confirmed");
                    Start { moved: true, ..give_up(position, number, given_up) }
                }
                Some(identity) => {
                    let session = ledger.session();
                    let position = continuity::require_kept_commits(options, session, server, &identity, position, mirror.as_ref()).await?;
                    require_kept(options, &position, floor)?;
                    give_up(position, number, given_up)
                }
                // It begins: with what the outbox still holds.
                None => Start { position: Position::rewound_to_the_start(floor), number, moved: false },
            }
        }
    };
    ledger.begin(options, &server.identity, cluster).await?;
    if options.delivery == Delivery::ExactlyOnce {
        let journal = Journal::new(server.identity.clone(), ledger.epoch(), start.number, ledger.seal().clone());
        forwarder.sink_mut().write_positions(names.topic.clone(), journal);
    }
    Ok(start)
}

/// The position in the topic of the database that this one continues.
async fn before_adoption(
    session: &Session<'_>,
    before: &Identity,
    saved: &Saved,
    ledger: &Ledger,
    forwarder: &Forwarder,
) -> Result<(Option<Recorded>, Foreign), Interruption> {
    let Session { options, cluster, .. } = session;
    let nothing = Ok((None, Foreign::default()));
    if saved.number == 0 || saved.cluster.as_deref() != Some(*cluster) {
        return nothing;
    }
    let names = KafkaNames::new(&options.name, before, &options.schema);
    match forwarder.topics().partitions(&names.topic).await {
        Ok(_) => position_topic::read(options, &names, saved, (ledger.seal(), ledger.signs())).await,
        Err(TopicError::Unknown(_)) => nothing,
        Err(error) => Err(error.into()),
    }
}

/// The newer one of the topic's and the row's position, unless the topic has lost some. What another program wrote to the
/// topic (`foreign`) never counts.
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
            "{what}. Nothing was published since. `tidings relay rewind --to-mirror --name {name}` goes on from the position that the database has (events that Kafka lost stay lost, and some may repeat), `tidings relay rewind --since TIME --name {name}` publishes what is younger once more (each has --dry-run)"
        )))
    };
    let Some(mirror) = saved.position else {
        if recorded.is_none() && foreign.records > 0 {
            return Err(Interruption::Refused(format!(
                "topic `{}` holds {} records that relay `{name}` has not signed, and the database has no position of it: another program wrote them, or an earlier version of a relay that was forgotten since. Nothing was published since. `tidings relay rewind --all --name {name}` publishes everything that the outbox holds (events that were published before are repeated), `tidings relay skip --all --name {name}` goes on with what comes from now on (each has --dry-run)",
                names.topic, foreign.records
            )));
        }
        return Ok(recorded.map_or((Position::start(), None), |recorded| (recorded.position, Some(recorded.identity))));
    };
    // Only a position that came from the topic says anything about the topic.
    let from_topic = saved.number > 0 && options.delivery == Delivery::ExactlyOnce;
    if from_topic && saved.cluster.as_deref().is_some_and(|before| before != cluster) {
        return refused(format!(
            "relay `{name}` published to Kafka cluster {} before, and this one is {cluster}",
            saved.cluster.as_deref().unwrap_or("?")
        ));
    }
    match recorded {
        // The database's own copy needs no signature. Read where an earlier version ran in between, or never signed.
        Some(Recorded { signed: false, number, .. }) if from_topic && number == saved.number => Ok((mirror, saved.identity)),
        _ if from_topic && foreign.known && recorded.as_ref().is_none_or(|recorded| recorded.number < saved.number) => {
            Ok((mirror, saved.identity))
        }
        None if from_topic => refused(format!(
            "Kafka has lost the positions of relay `{name}`: topic `{}` is missing or empty, and the database knows of its record {}",
            names.topic, saved.number
        )),
        // Numbers count on from one epoch to the next. The row's epoch says nothing here: a leader stores its own before its first record.
        Some(recorded) if from_topic && recorded.number < saved.number => refused(format!(
            "Kafka has lost data: topic `{}` ends with record {} of relay `{name}`, and the database knows of record {}",
            names.topic, recorded.number, saved.number
        )),
        Some(recorded) if from_topic || (recorded.epoch, recorded.number) >= (saved.epoch, saved.number) => {
            Ok((recorded.position, Some(recorded.identity)))
        }
        Some(_) | None => Ok((mirror, saved.identity)),
    }
}

/// Every event that the position has not published must still be in the outbox.
pub(super) fn require_kept(options: &RelayOptions, position: &Position, floor: u64) -> Result<(), Interruption> {
    if !position.needs_below(floor) {
        return Ok(());
    }
    let name = &options.name;
    Err(Interruption::Refused(format!(
        "retention has deleted events that relay `{name}` has not published (of transactions below {floor}): it was not in the database's table of relays then, so it was forgotten, or the table is older than its positions in Kafka. Those events are gone. `tidings relay rewind --all --name {name}` publishes everything that the outbox still holds, `tidings relay skip --all --name {name}` goes on with what comes from now on (each has --dry-run)"
    )))
}

/// The position without the events that the operator has given up.
fn give_up(mut position: Position, number: u64, events: Vec<GivenUp>) -> Start {
    let moved = !events.is_empty();
    for event in events {
        tracing::warn!(seq = event.seq, "leaves out an event that the operator has given up");
        position.give_up(event);
    }
    Start { position, number, moved }
}

/// Makes this relay the only producer of its transactional ids.
async fn fence(session: &Session<'_>, producers: &[Arc<Producer>]) -> Result<(), Interruption> {
    let ids = session.names.transactional_ids.iter();
    try_join_all(ids.zip(producers).map(|(id, producer)| fence_one(session, id, producer))).await?;
    Ok(())
}

async fn fence_one(session: &Session<'_>, id: &str, producer: &Arc<Producer>) -> Result<(), Interruption> {
    let Session { observer, lost, .. } = session;
    let (mut asked, mut standing) = (0, None);
    loop {
        asked += 1;
        let asks = producer.clone();
        let fenced = tokio::select! {
            fenced = bounded("init_transactions", Producer::FENCE_TIMEOUT + OVERDUE, move || asks.fence()) => fenced,
            () = lost.cancelled() => return Err(Interruption::LeaseLost),
        };
        match fenced {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(FenceError::NoAnswer)) => {
                let text = "the transaction coordinator does not answer; the relay waits for it";
                tracing::warn!("{text}");
                observer.pulse().moved();
                standing.get_or_insert_with(|| observer.hold(Part::Kafka, text));
                if asked == FENCE_TRIES {
                    return Err(Interruption::Kafka(text.into()));
                }
            }
            Ok(Err(FenceError::TimeoutTooLong)) => return Err(Interruption::TransactionTimeout(producer.transaction_timeout())),
            Ok(Err(FenceError::Failed(Failure::Fenced))) => {
                return Err(Interruption::Kafka(format!("another relay has begun to produce as `{id}` at the same time")));
            }
            Ok(Err(FenceError::Failed(Failure::Broken(reason) | Failure::Refused(reason) | Failure::Untimely(reason)))) => {
                return Err(Interruption::Kafka(format!(
                    "cannot produce as the only one of transactional id `{id}`: {reason}. If the cluster asks for rights: grant Write on it to the relay's principal, see docs/operating.md"
                )));
            }
            Err(unanswered) => return Err(Interruption::Kafka(unanswered.to_string())),
        }
    }
}

/// What a start would find of the positions in Kafka. Nothing is fenced, created or stored.
///
/// # Errors
/// The refusal of the start; a broker that does not answer; a lost connection.
#[cfg(feature = "cli")]
pub(super) async fn preview(
    options: &RelayOptions,
    session: &mut PgConnection,
    server: &Server,
    saved: Saved,
) -> Result<String, Interruption> {
    let names = KafkaNames::new(&options.name, &server.identity, &options.schema);
    let topics = std::slice::from_ref(&names.topic);
    let cluster = Cluster::ask(&options.kafka, topics, PREVIEW_TIMEOUT).await.map_err(Interruption::Kafka)?;
    let (recorded, foreign) = match cluster.topics.get(&names.topic) {
        Some(Topic::There { partitions: 1, .. }) => {
            let (seal, signs) = ledger::known_seal(options, session).await?;
            position_topic::read(options, &names, &saved, (&seal, signs)).await?
        }
        Some(Topic::There { partitions, .. }) => return Err(position_topic::wrong_partitions(&names, partitions)),
        Some(Topic::Refused(reason)) => return Err(Interruption::Kafka(reason.clone())),
        Some(Topic::Missing) | None => (None, Foreign::default()),
    };
    let id = cluster.id.or_else(|| saved.cluster.clone()).unwrap_or_default();
    let mirror = saved.position.clone();
    if let (position, Some(identity)) = choose(options, &names, &id, saved, recorded, &foreign)? {
        let kept = continuity::require_kept_commits(options, session, server, &identity, position, mirror.as_ref());
        let position = kept.await?;
        let schema = format!("\"{}\"", options.schema);
        let floor = if options.debezium.is_none() { ledger::floor(session, &schema, "").await? } else { 0 };
        require_kept(options, &position, floor)?;
    }
    Ok(names.topic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::names::KnownNames;

    fn options() -> RelayOptions {
        let database = crate::postgres::Settings::parse("postgres://a@localhost/b").expect("a URL");
        RelayOptions::new(database, crate::kafka::Settings::default())
    }

    fn at(log: u64) -> Position {
        Position { log: crate::postgres::Lsn(log), ..Position::start() }
    }

    fn identity() -> Identity {
        Identity { system: "1".into(), database: 2, timeline: 1 }
    }

    /// Row and topic as (epoch, number), each with or without; what is gone on from, `R`ow or `T`opic, or a refusal.
    fn chosen(row: Option<(i64, u64)>, topic: Option<(i64, u64)>, cluster: &str) -> Result<&'static str, String> {
        chosen_of(row, topic.map(|(epoch, number)| (epoch, number, true)), &Foreign::default(), cluster)
    }

    /// The same of a topic's record that is signed or not, with others that do not count.
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
        let recorded = topic.map(|(epoch, number, signed)| Recorded { position: at(2), identity: identity(), epoch, number, signed });
        let names = KafkaNames { transactional_ids: ["t".into(), "t-2".into(), "t-3".into()], topic: "p".into() };
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
        // A leader stored its row, and died before its first batch.
        assert_eq!(chosen(Some((4, 7)), Some((3, 7)), "ours"), Ok("topic"));
        // Stored by delivery at least once, before or after what the topic holds.
        assert_eq!(chosen(Some((3, 0)), None, "ours"), Ok("row"));
        assert_eq!(chosen(Some((3, 0)), Some((2, 9)), "ours"), Ok("row"));
        assert_eq!(chosen(Some((3, 0)), Some((4, 10)), "ours"), Ok("topic"));
        // A leader that stored its epoch and was killed before its first record.
        assert_eq!(chosen(Some((4, 7)), Some((3, 7)), "ours"), Ok("topic"));
        // Lost.
        assert!(chosen(Some((3, 7)), None, "ours").is_err_and(|text| text.contains("missing or empty")));
        assert!(chosen(Some((3, 7)), Some((3, 6)), "ours").is_err_and(|text| text.contains("ends with record 6")));
        assert!(chosen(Some((3, 7)), Some((3, 7)), "theirs").is_err_and(|text| text.contains("this one is theirs")));
    }

    #[test]
    fn what_another_program_wrote_is_not_gone_on_from() {
        let foreign = |known| Foreign { records: 2, last: 9, known };
        // The relay has not begun, and somebody wrote to its topic.
        assert!(
            chosen_of(None, None, &foreign(false), "ours")
                .is_err_and(|text| text.contains("has not signed") && text.contains("rewind --all"))
        );
        assert_eq!(chosen_of(Some((3, 7)), Some((3, 7, true)), &foreign(true), "ours"), Ok("topic"));
        assert_eq!(chosen_of(Some((3, 7)), Some((3, 9, true)), &foreign(false), "ours"), Ok("topic"));
        // Kafka has lost what the relay signed, and others wrote something else.
        assert!(chosen_of(Some((3, 7)), None, &foreign(false), "ours").is_err_and(|text| text.contains("missing or empty")));
        // An earlier version ran since, and wrote the position that the database knows.
        assert_eq!(chosen_of(Some((3, 7)), Some((2, 5, true)), &foreign(true), "ours"), Ok("row"));
        // An earlier version wrote all of it.
        assert_eq!(chosen_of(Some((3, 7)), Some((3, 7, false)), &Foreign::default(), "ours"), Ok("row"));
        assert_eq!(chosen_of(Some((3, 7)), Some((3, 9, false)), &Foreign::default(), "ours"), Ok("topic"));
    }
}
