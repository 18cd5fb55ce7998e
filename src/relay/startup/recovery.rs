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
//!
//! | file | content |
//! |---|---|
//! | `fencing` | step 2 |
//! | `choice` | step 4. Pure |
//! | `preview` | the same choice without any change, for `tidings check` |

mod choice;
mod fencing;
#[cfg(feature = "cli")]
mod preview;

use tokio_util::sync::CancellationToken;

#[cfg(feature = "cli")]
pub(crate) use self::preview::preview;
use self::{choice::choose, fencing::fence};
use super::{continuity, names::KafkaNames, position_topic, server::Server};
use crate::{
    failpoint::{self, Step},
    kafka::TopicError,
    relay::{
        DeliveryGuarantee, RelayOptions,
        error::Interruption,
        leadership::relay_store::{RelayStore, Saved},
        monitor::metrics::RelayMetrics,
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
    mut saved: Saved,
    relay_store: &mut RelayStore,
    publisher: &mut EventPublisher,
) -> Result<Start, Interruption> {
    let Session {
        options,
        server,
        names,
        cluster,
        ..
    } = session;
    continuity::require_same_database(options, relay_store.session(), server, &saved).await?;
    let (recorded, foreign) = read_topic(&session, &saved, relay_store, publisher).await?;
    let (recorded, foreign, adopted) = match &saved.adopts {
        // A position in this database's own topic would show that the relay has published here
        // since.
        Some(before) if recorded.is_none() && saved.moved_to.is_none() => {
            let (recorded, foreign) =
                before_adoption(&session, before, &saved, relay_store, publisher).await?;
            (recorded, foreign, true)
        }
        _ => (recorded, foreign, false),
    };
    let number = recorded
        .as_ref()
        .map_or(0, |recorded| recorded.number)
        .max(saved.number);
    let start = match saved.moved_to.take() {
        Some(position) => moved(options, position, recorded, number),
        None => {
            let found = Found {
                recorded,
                foreign,
                adopted,
            };
            continued(&session, saved, found, number, relay_store).await?
        }
    };
    relay_store
        .begin(options, &server.identity, cluster)
        .await?;
    if options.delivery == DeliveryGuarantee::ExactlyOnce {
        let journal = Journal::new(
            server.identity.clone(),
            relay_store.epoch(),
            start.number,
            relay_store.seal().clone(),
        );
        publisher
            .sink_mut()
            .write_positions(names.topic.clone(), journal);
    }
    Ok(start)
}

/// Positions that Kafka holds.
struct Found {
    recorded: Option<Recorded>,
    foreign: Foreign,
    /// The topic belongs to the database that this one continues.
    adopted: bool,
}

/// Fences off earlier producers with delivery exactly once, and reads the relay's own topic.
async fn read_topic(
    session: &Session<'_>,
    saved: &Saved,
    relay_store: &RelayStore,
    publisher: &EventPublisher,
) -> Result<(Option<Recorded>, Foreign), Interruption> {
    let Session {
        options,
        names,
        cluster,
        ..
    } = *session;
    let nothing = (None, Foreign::default());
    let signatures = (relay_store.seal(), relay_store.signs());
    Ok(match options.delivery {
        DeliveryGuarantee::ExactlyOnce => {
            fence(session, publisher.sink().producers()).await?;
            failpoint::reached(Step::Fenced);
            let exists = position_topic::find_or_create(options, names, publisher).await?;
            if exists {
                let limit = publisher
                    .sink()
                    .producers()
                    .iter()
                    .map(|producer| producer.transaction_timeout())
                    .max()
                    .unwrap_or_default();
                position_topic::read_after_fencing(session, saved, signatures, limit).await?
            } else {
                nothing
            }
        }
        // The relay may have delivered exactly once before. Then its last position is in the topic,
        // at most a second newer than the one in the row.
        DeliveryGuarantee::AtLeastOnce
            if saved.number > 0 && saved.cluster.as_deref() == Some(cluster) =>
        {
            position_topic::read(options, names, saved, signatures).await?
        }
        DeliveryGuarantee::AtLeastOnce => nothing,
    })
}

/// Returns the start at the position that the operator moved the relay to.
fn moved(
    options: &RelayOptions,
    position: Position,
    recorded: Option<Recorded>,
    number: u64,
) -> Start {
    tracing::warn!("continues from the position that the operator moved the relay to");
    // Released events stay released.
    let released = recorded.map_or_else(Vec::new, |recorded| recorded.position.released);
    // Retention deletes only from the relay's own outbox.
    let forgone = if options.debezium.is_none() {
        position.floor
    } else {
        0
    };
    let position = Position {
        released,
        floor: forgone,
        ..position
    };
    Start {
        position,
        number,
        moved: true,
    }
}

/// Returns the start at the newest position of the relay, or the first start of a relay without
/// one.
async fn continued(
    session: &Session<'_>,
    saved: Saved,
    found: Found,
    number: u64,
    relay_store: &mut RelayStore,
) -> Result<Start, Interruption> {
    let Session {
        options,
        server,
        names,
        cluster,
        ..
    } = *session;
    let floor = match options.debezium {
        None => relay_store.floor().await?,
        Some(_) => 0,
    };
    let (given_up, mirror) = (saved.given_up.clone(), saved.position.clone());
    let (recorded, foreign) = (found.recorded, &found.foreign);
    let (position, identity) = choose(options, names, cluster, saved, recorded, foreign)?;
    let Some(identity) = identity else {
        // The first start publishes everything that the outbox still contains.
        return Ok(Start {
            position: Position::rewound_to_the_start(floor),
            number,
            moved: false,
        });
    };
    let (position, identity) = match found.adopted {
        true => (position.adopted(), &server.identity),
        false => (position, &identity),
    };
    let position = continuity::require_kept_commits(
        options,
        relay_store.session(),
        server,
        identity,
        position,
        mirror.as_ref(),
    )
    .await?;
    require_kept(options, &position, floor)?;
    if found.adopted {
        tracing::warn!("continues the outbox of another database, as confirmed by the operator");
    }
    let start = give_up(position, number, given_up);
    Ok(Start {
        moved: start.moved || found.adopted,
        ..start
    })
}

/// Returns the position in the topic of the database that this one continues.
async fn before_adoption(
    session: &Session<'_>,
    before: &Identity,
    saved: &Saved,
    relay_store: &RelayStore,
    publisher: &EventPublisher,
) -> Result<(Option<Recorded>, Foreign), Interruption> {
    let Session {
        options, cluster, ..
    } = session;
    let nothing = Ok((None, Foreign::default()));
    if saved.number == 0 || saved.cluster.as_deref() != Some(*cluster) {
        return nothing;
    }
    let names = KafkaNames::new(&options.name, before, &options.schema);
    match publisher.topics().partitions(&names.topic).await {
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
