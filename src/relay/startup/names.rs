//! Names of a relay's slot, publication, transactional ids and position topic.
//!
//! A slot belongs to a whole server, and a topic or a transactional id to a whole Kafka cluster.
//! Their names therefore contain a mark of the database and the schema. An installation that has a
//! slot or a publication under another name keeps it.

use std::time::Duration;

use sqlx::{PgConnection, Row as _};

use crate::{
    kafka::Transactional,
    relay::{RelayOptions, position::Identity, sink::PRODUCERS},
};

/// The relay's names in Kafka.
pub(crate) struct KafkaNames {
    /// The transactional ids of its producers, which take turns.
    pub(crate) transactional_ids: [String; PRODUCERS],
    /// The topic of its positions.
    pub(crate) topic: String,
}

impl KafkaNames {
    /// Returns the transactional ids, with `timeout` as the time limit of their transactions.
    pub(crate) fn transactional(&self, timeout: Duration) -> Vec<Transactional<'_>> {
        self.transactional_ids
            .iter()
            .map(|id| Transactional { id, timeout })
            .collect()
    }

    /// Returns the names of relay `relay` in database `identity` and schema `schema`.
    pub(crate) fn new(relay: &str, identity: &Identity, schema: &str) -> Self {
        let id = format!("tidings.relay.{relay}.{}", identity.mark(schema));
        Self {
            transactional_ids: [id.clone(), format!("{id}-2"), format!("{id}-3")],
            topic: position_topic_name(relay, identity, schema),
        }
    }
}

/// Prefix of position topics.
const POSITION_TOPICS: &str = "tidings.position.";

/// Returns `true` if this is a position topic of a relay. No event goes there.
pub(crate) fn is_of_positions(topic: &str) -> bool {
    topic.starts_with(POSITION_TOPICS)
}

/// Returns the name of the topic for a relay's positions.
pub(crate) fn position_topic_name(relay: &str, identity: &Identity, schema: &str) -> String {
    format!("{POSITION_TOPICS}{relay}.{}", identity.mark(schema))
}

/// The relay's names on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogNames {
    pub(crate) slot: String,
    pub(crate) publication: String,
}

/// The relay whose names are looked up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) relay: &'a str,
    pub(crate) schema: &'a str,
    /// Schema and name of the table that the relay reads.
    pub(crate) table: (&'a str, &'a str),
    /// The publication that the operator has configured.
    pub(crate) publication: Option<&'a str>,
}

/// Names that are recorded in the relay's row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KnownNames {
    /// The last used slot.
    pub(crate) slot: Option<String>,
    /// The last used publication.
    pub(crate) publication: Option<String>,
    /// The relay has stored a position, so a slot under the earlier name may be its own.
    pub(crate) has_run: bool,
}

/// Names that the slot and the publication may have without a record of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Own {
    marked: String,
    unmarked: String,
}

/// Objects that the server has under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    name: String,
    /// A slot of this database exists.
    slot: bool,
    publication: bool,
    /// The publication contains the outbox.
    publishes_outbox: bool,
    /// The publication contains other tables.
    publishes_others: bool,
}

/// Returns the name that earlier versions gave to slot and publication. It is the same in every
/// database.
pub(crate) fn unmarked(relay: &str) -> String {
    if relay == "tidings" {
        relay.to_owned()
    } else {
        format!("tidings_{relay}")
    }
}

/// Returns the name for the slot and the publication of a relay that has neither yet.
fn marked(relay: &str, identity: &Identity, schema: &str) -> String {
    let mark = identity.mark(schema);
    if relay == "tidings" {
        format!("tidings_{mark}")
    } else {
        format!("tidings_{relay}_{mark}")
    }
}

/// Returns the names that the relay uses in this database.
///
/// # Errors
///
/// Returns an error if the connection is lost.
pub(crate) async fn log_names(
    subject: Subject<'_>,
    session: &mut PgConnection,
    identity: &Identity,
    known: &KnownNames,
) -> Result<LogNames, sqlx::Error> {
    let own = Own {
        marked: marked(subject.relay, identity, subject.schema),
        unmarked: unmarked(subject.relay),
    };
    let stored = [known.slot.as_deref(), known.publication.as_deref()];
    let mut candidates: Vec<String> = stored.into_iter().flatten().map(str::to_owned).collect();
    candidates.extend([own.marked.clone(), own.unmarked.clone()]);
    let found = find(subject.table, session, &candidates).await?;
    let publication = subject.publication.map(str::to_owned);
    Ok(LogNames {
        slot: own.slot(&found, known),
        publication: publication.unwrap_or_else(|| own.publication(&found, known)),
    })
}

async fn find(
    (schema, table): (&str, &str),
    session: &mut PgConnection,
    names: &[String],
) -> Result<Vec<Found>, sqlx::Error> {
    let sql = "select n.name,
                exists (select from pg_replication_slots s
                    where s.slot_name = n.name and s.database = current_database()) as slot,
                exists (select from pg_publication p where p.pubname = n.name) as publication,
                coalesce(bool_or(t.schemaname = $2 and t.tablename = $3), false)
                    as publishes_outbox,
                coalesce(bool_or(not (t.schemaname = $2 and t.tablename = $3)), false)
                    as publishes_others
         from unnest($1::text[]) with ordinality n (name, place)
         left join pg_publication_tables t on t.pubname = n.name
         group by n.name, n.place order by n.place";
    let rows = sqlx::query(sql)
        .bind(names)
        .bind(schema)
        .bind(table)
        .fetch_all(session)
        .await?;
    let read = |row: &sqlx::postgres::PgRow| -> Result<Found, sqlx::Error> {
        Ok(Found {
            name: row.try_get("name")?,
            slot: row.try_get("slot")?,
            publication: row.try_get("publication")?,
            publishes_outbox: row.try_get("publishes_outbox")?,
            publishes_others: row.try_get("publishes_others")?,
        })
    };
    rows.iter().map(read).collect()
}

impl RelayOptions {
    /// Returns the relay that these options describe.
    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject {
            relay: &self.name,
            schema: &self.schema,
            table: self.table(),
            publication: self.configured_publication(),
        }
    }
}

impl Own {
    /// Returns the first slot of this database that is the relay's own. Another schema of the
    /// database may have a relay of the same name, so the publication decides whose a slot under
    /// the unmarked name is.
    fn slot(&self, found: &[Found], known: &KnownNames) -> String {
        let is_ours = |one: &&Found| {
            let is_named = one.name == self.marked || known.slot.as_deref() == Some(&one.name);
            let by_publication = one.publishes_outbox || (!one.publishes_others && known.has_run);
            one.slot && (is_named || (one.name == self.unmarked && by_publication))
        };
        self.or_marked(found.iter().find(is_ours))
    }

    /// Returns the first publication that is the relay's own, regardless of its fitness.
    fn publication(&self, found: &[Found], known: &KnownNames) -> String {
        let is_ours = |one: &&Found| {
            let is_named =
                one.name == self.marked || known.publication.as_deref() == Some(&one.name);
            one.publication && (is_named || (one.name == self.unmarked && one.publishes_outbox))
        };
        self.or_marked(found.iter().find(is_ours))
    }

    fn or_marked(&self, found: Option<&Found>) -> String {
        found.map_or(&self.marked, |one| &one.name).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(database: i64) -> Identity {
        Identity {
            system: "7311223344556677889".into(),
            database,
            timeline: 1,
        }
    }

    fn found(name: &str, slot: bool, tables: Option<(bool, bool)>) -> Found {
        let (publishes_outbox, publishes_others) = tables.unwrap_or_default();
        Found {
            name: name.into(),
            slot,
            publication: tables.is_some(),
            publishes_outbox,
            publishes_others,
        }
    }

    #[test]
    fn names_differ_between_databases_and_fit_what_a_server_allows() {
        const NAMEDATALEN: usize = 64;
        let longest = "r".repeat(40);
        for relay in ["tidings", "orders", longest.as_str()] {
            let (one, other) = (
                marked(relay, &identity(1), "tidings"),
                marked(relay, &identity(2), "tidings"),
            );
            assert_ne!(one, other);
            assert_ne!(one, marked(relay, &identity(1), "other"));
            assert!(
                one.len() < NAMEDATALEN && one.starts_with("tidings_"),
                "{one}"
            );
            assert_ne!(one, unmarked(relay));
            let (one, other) = (
                KafkaNames::new(relay, &identity(1), "s"),
                KafkaNames::new(relay, &identity(2), "s"),
            );
            assert_ne!(
                (one.topic, &one.transactional_ids),
                (other.topic, &other.transactional_ids)
            );
        }
        assert_ne!(
            marked("a", &identity(1), "s"),
            marked("b", &identity(1), "s")
        );
    }

    /// An existing installation keeps its slot, and a relay of another schema or another database
    /// does not take it.
    #[test]
    fn a_slot_under_another_name_is_kept_only_by_the_relay_that_it_belongs_to() {
        let (ours, theirs, both, empty) =
            ((true, false), (false, true), (true, true), (false, false));
        let own = Own {
            marked: "new".into(),
            unmarked: "tidings".into(),
        };
        let ran = KnownNames {
            has_run: true,
            ..KnownNames::default()
        };
        let fresh = KnownNames::default();
        let stored = KnownNames {
            slot: Some("old".into()),
            publication: Some("old".into()),
            has_run: true,
        };
        let by_connector = KnownNames {
            publication: Some("dbz".into()),
            ..ran.clone()
        };
        for (found, known, expected) in [
            (
                vec![
                    found("new", false, None),
                    found("tidings", true, Some(ours)),
                ],
                &ran,
                ("tidings", "tidings"),
            ),
            (
                vec![
                    found("new", false, None),
                    found("tidings", true, Some(both)),
                ],
                &fresh,
                ("tidings", "tidings"),
            ),
            (
                vec![
                    found("new", false, None),
                    found("tidings", true, Some(theirs)),
                ],
                &ran,
                ("new", "new"),
            ),
            (
                vec![
                    found("new", false, None),
                    found("tidings", true, Some(empty)),
                ],
                &ran,
                ("tidings", "new"),
            ),
            (
                vec![found("new", false, None), found("tidings", true, None)],
                &ran,
                ("tidings", "new"),
            ),
            (
                vec![found("new", false, None), found("tidings", true, None)],
                &fresh,
                ("new", "new"),
            ),
            // The slot belongs to another database: this one has none under the name.
            (
                vec![
                    found("new", false, None),
                    found("tidings", false, Some(ours)),
                ],
                &ran,
                ("new", "tidings"),
            ),
            (
                vec![
                    found("new", true, Some(ours)),
                    found("tidings", true, Some(ours)),
                ],
                &ran,
                ("new", "new"),
            ),
            (
                vec![
                    found("old", true, Some(empty)),
                    found("new", true, Some(ours)),
                ],
                &stored,
                ("old", "old"),
            ),
            (
                vec![found("old", false, None), found("new", false, None)],
                &stored,
                ("new", "new"),
            ),
            // A connector's slot has the name of the publication that the relay reads.
            (
                vec![found("dbz", true, Some(ours)), found("new", false, None)],
                &by_connector,
                ("new", "dbz"),
            ),
        ] {
            let chosen = (own.slot(&found, known), own.publication(&found, known));
            assert_eq!(
                (chosen.0.as_str(), chosen.1.as_str()),
                expected,
                "{found:?} {known:?}"
            );
        }
    }
}
