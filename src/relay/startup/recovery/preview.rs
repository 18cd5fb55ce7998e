//! Preview of a start for `tidings check`: the same choice without any change.

use std::time::Duration;

use sqlx::PgConnection;

use super::{choice::choose, require_kept};
use crate::{
    kafka::{Cluster, Topic},
    relay::{
        RelayOptions,
        error::Interruption,
        leadership::relay_store::{self, Saved},
        position::Foreign,
        startup::{continuity, names::KafkaNames, position_topic, server::Server},
    },
};

/// Time limit of each request of a preview.
const PREVIEW_TIMEOUT: Duration = Duration::from_secs(10);

/// Examines the positions in Kafka as a start would. Nothing is fenced, created or stored.
///
/// # Errors
///
/// Returns the refusal of the start, or an error if a broker does not answer or the connection is
/// lost.
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
        .map_err(|error| Interruption::Kafka(error.to_string()))?;
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
