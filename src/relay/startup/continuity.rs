//! Checks that the database is still the one that a position belongs to, and still contains every
//! published commit.
//!
//! The identity is compared first: in another database, transaction ids and log positions have
//! other meanings. In the same database, the timeline, the end of the log and the last published
//! event show whether commits were lost.

use sqlx::{AssertSqlSafe, PgConnection, types::Json};

use super::server::Server;
use crate::{
    postgres::{Lsn, replication::Connection},
    relay::{
        RelayOptions,
        error::Interruption,
        leadership::relay_store::{Saved, within},
        position::{Change, Identity, Position, Witness},
    },
};

/// Maximum number of events that a message counts. Above it, the message shows "more than" it.
const COUNTED_MAX: i64 = 10_000;

/// Checks that the stored position belongs to this database, or that an operator has decided about
/// it (a move or an adoption).
///
/// # Errors
///
/// Returns a refusal with the cause and the remedies, or an error if the connection is lost.
pub(crate) async fn require_same_database(
    options: &RelayOptions,
    session: &mut PgConnection,
    server: &Server,
    saved: &Saved,
) -> Result<(), Interruption> {
    let Some(identity) = saved
        .identity
        .as_ref()
        .filter(|identity| identity.change(&server.identity) == Change::Database)
    else {
        return Ok(());
    };
    if saved.moved_to.is_some() || saved.adopts.is_some() {
        return Ok(());
    }
    let original = original_of(session, server, identity).await?;
    let position = saved.position.clone().unwrap_or_else(Position::start);
    let counts = Counts::of(options, session, &position).await?;
    Err(other_database(
        options,
        server,
        identity,
        original.as_deref(),
        &counts,
    ))
}

/// Returns the name of the database `identity` if this server still contains it beside the
/// connected one.
///
/// # Errors
///
/// Returns an error if the connection is lost.
pub(crate) async fn original_of(
    session: &mut PgConnection,
    server: &Server,
    identity: &Identity,
) -> Result<Option<String>, Interruption> {
    if identity.system != server.identity.system {
        return Ok(None);
    }
    let name = sqlx::query_scalar("select datname::text from pg_database where oid::bigint = $1")
        .bind(identity.database);
    within(
        "looking for the database of the position",
        name.fetch_optional(session),
    )
    .await
}

fn other_database(
    options: &RelayOptions,
    server: &Server,
    identity: &Identity,
    original: Option<&str>,
    counts: &Counts,
) -> Interruption {
    let (name, here) = (&options.name, &server.identity);
    let what = format!(
        "relay `{name}` has a position in another database (system {}, oid {}; this one is system \
         {}, oid {})",
        identity.system, identity.database, here.system, here.database
    );
    let adopt = format!(
        "`tidings relay adopt --name {name}` continues after the last published event: no event \
         repeats, and none is left out"
    );
    let skip = format!(
        "`tidings relay skip --all --name {name}` publishes only new events, and leaves out {} \
         that the position has not published",
        counts.unpublished
    );
    let rewind = format!(
        "`tidings relay rewind --all --name {name}` publishes everything that the outbox contains, \
         {} of it again",
        counts.published
    );
    let (cause, remedies) = match original {
        Some(original) => (
            format!(
                "this database is a copy of database `{original}` of the same server, whose relay \
                 keeps its slot and its positions"
            ),
            format!("to run a relay beside the original, {skip}; {rewind}"),
        ),
        None if identity.system == here.system => (
            "that database was dropped, and this one was restored from it or copied".to_owned(),
            format!(
                "if this database replaces the other one, {adopt}; if the other one continues \
                 elsewhere, {skip}; {rewind}"
            ),
        ),
        None => (
            "the server was upgraded by pg_upgrade, or this database was restored from a dump or \
             copied to another server"
                .to_owned(),
            format!(
                "after an upgrade or a move, {adopt}; if the other database continues, {skip}; \
                 {rewind}"
            ),
        ),
    };
    Interruption::Refused(format!("{what}: {cause}. {remedies} (each has --dry-run)"))
}

/// Checks that this database contains every published commit. `mirror` is the position that the
/// database itself stores. Returns the position, without its witness if that row was deleted.
///
/// # Errors
///
/// Returns a refusal with the cause and the remedies, or an error if the connection is lost.
pub(crate) async fn require_kept_commits(
    options: &RelayOptions,
    session: &mut PgConnection,
    server: &Server,
    identity: &Identity,
    position: Position,
    mirror: Option<&Position>,
) -> Result<Position, Interruption> {
    let refused = async |session: &mut PgConnection, evidence: String| {
        let counts = Counts::of(options, session, &position).await?;
        Err(lost_commits(options, &evidence, &counts))
    };
    if identity.change(&server.identity) == Change::Timeline
        && let Some(evidence) = left_before(options, server, identity, &position).await?
    {
        return refused(session, evidence).await;
    }
    if server.insert < position.published_lsn {
        let (end, reach) = (server.insert, position.published_lsn);
        return refused(
            session,
            format!("its log ends at {end}, before {reach}, where the last published event was"),
        )
        .await;
    }
    // The relay does not control deletes from another table.
    let Some(witness) = position.witness.filter(|_| options.debezium.is_none()) else {
        return Ok(position);
    };
    if is_there(options, session, witness).await? {
        return Ok(position);
    }
    if mirror.is_some_and(|mirror| mirror.covers(witness.xid, witness.seq)) {
        // The relay's row was written after the event, so the event's commit belongs to this
        // database's history.
        tracing::warn!(
            event = %witness.id,
            seq = witness.seq,
            "the last published event was deleted from the outbox by a program other than the \
             relay. Published events may be deleted; events that were deleted before they were \
             published are lost. Leave deleting to the relay ([retention])"
        );
        return Ok(Position {
            witness: None,
            ..position
        });
    }
    let evidence = format!(
        "event {} (seq {}), the last one published, is not in the outbox. Either the database lost \
         commits (a failover, or a restore), or a program other than the relay deleted the row, \
         and then no event is lost",
        witness.id, witness.seq
    );
    let counts = Counts::of(options, session, &position).await?;
    Err(not_there(options, &evidence, &counts))
}

async fn is_there(
    options: &RelayOptions,
    session: &mut PgConnection,
    witness: Witness,
) -> Result<bool, Interruption> {
    let sql = format!(
        "select exists (select from \"{}\".outbox
             where seq = $1 and id = $2 and xid = $3::text::xid8)",
        options.schema
    );
    let there = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(witness.seq)
        .bind(witness.id)
        .bind(witness.xid.to_string());
    within(
        "looking for the last published event",
        there.fetch_one(session),
    )
    .await
}

/// Returns evidence that a promoted standby lacks published commits: its timeline left the old one
/// before them. Returns `None` if there is no such evidence.
async fn left_before(
    options: &RelayOptions,
    server: &Server,
    identity: &Identity,
    position: &Position,
) -> Result<Option<String>, Interruption> {
    let (old, new) = (identity.timeline, server.identity.timeline);
    let history = async {
        let mut connection = Connection::open(
            &options.database,
            &options.database.application_name("relay history"),
        )
        .await?;
        connection.query(&format!("TIMELINE_HISTORY {new}")).await
    };
    let switch = match history.await {
        Ok(rows) => rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().nth(1).flatten())
            .and_then(|text| left_at(&text, old)),
        Err(error) => {
            tracing::warn!(
                "the timeline's history cannot be read ({error}): only the last published event \
                 shows whether the failover lost commits"
            );
            return Ok(None);
        }
    };
    Ok(match switch {
        Some(switch) if switch >= position.published_lsn => {
            tracing::warn!(
                old,
                new,
                at = %switch,
                "the database was promoted to a new timeline after the last published event: the \
                 relay continues"
            );
            None
        }
        Some(switch) => Some(format!(
            "timeline {new} left timeline {old} at {switch}, before {}, where the last published \
             event was",
            position.published_lsn
        )),
        None => Some(format!(
            "timeline {new} does not descend from timeline {old}, where the relay published"
        )),
    })
}

/// Returns the log position where a timeline was left, from a history file (lines of `timeline TAB
/// lsn TAB reason`).
fn left_at(history: &str, timeline: i64) -> Option<Lsn> {
    history.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()?.parse::<i64>().ok()? == timeline)
            .then(|| words.next()?.parse().ok())
            .flatten()
    })
}

fn lost_commits(options: &RelayOptions, evidence: &str, counts: &Counts) -> Interruption {
    let name = &options.name;
    Interruption::Refused(format!(
        "the database of relay `{name}` has lost commits that were published (a failover, or a \
         restore): {evidence}. Consumers may have seen events that no longer exist. {}",
        remedies(options, counts)
    ))
}

fn not_there(options: &RelayOptions, evidence: &str, counts: &Counts) -> Interruption {
    Interruption::Refused(format!("{evidence}. {}", remedies(options, counts)))
}

/// Returns the remedies, starting with the one that loses and repeats the fewest events.
fn remedies(options: &RelayOptions, counts: &Counts) -> String {
    let (
        name,
        Counts {
            published,
            unpublished,
        },
    ) = (&options.name, counts);
    format!(
        "`tidings relay rewind --to-mirror --name {name}` continues from the position in the \
         database: it publishes the {unpublished} that are not published, and may repeat events of \
         the last second before the relay ended; `tidings relay rewind --all --name {name}` \
         publishes everything that the outbox contains, {published} of it again, `tidings relay \
         rewind --since TIME --name {name}` younger events; `tidings relay skip --all --name \
         {name}` continues with new events, and leaves out the {unpublished} that are not \
         published (each has --dry-run)"
    )
}

/// Numbers of events of the outbox that a position has published and has not published.
pub(crate) struct Counts {
    pub(crate) published: Count,
    pub(crate) unpublished: Count,
}

/// A number of events. With `more`, the actual number is larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    events: i64,
    more: bool,
}

impl Counts {
    /// Counts up to a bound. Events of a Debezium table are not counted, because it does not record
    /// transactions.
    async fn of(
        options: &RelayOptions,
        session: &mut PgConnection,
        position: &Position,
    ) -> Result<Self, Interruption> {
        let unknown = Count {
            events: 0,
            more: true,
        };
        if options.debezium.is_some() {
            return Ok(Self {
                published: unknown,
                unpublished: unknown,
            });
        }
        let schema = &options.schema;
        // All rows before the first transaction that is not completely published are published, so
        // they are only counted. At most `$2` of the other rows are examined.
        let sql = format!(
            "with first as materialized (
                 select pg_snapshot_xmin(($1 ->> 'seen')::pg_snapshot) as xid
             ), rest as materialized (
                 select o.xid, o.seq from \"{schema}\".outbox o
                 where o.xid >= (select xid from first) order by o.xid, o.seq limit $2
             )
             select (select count(*) from (
                        select from \"{schema}\".outbox o
                        where o.xid < (select xid from first) limit $2) bounded),
                    count(*) filter (where \"{schema}\".is_published($1, xid, seq)),
                    count(*) filter (where not \"{schema}\".is_published($1, xid, seq))
             from rest"
        );
        let counts = sqlx::query_as(AssertSqlSafe(sql))
            .bind(Json(position))
            .bind(COUNTED_MAX + 1)
            .fetch_one(session);
        let (before, published, unpublished): (i64, i64, i64) =
            within("counting events", counts).await?;
        let is_cut = published + unpublished > COUNTED_MAX;
        Ok(Self {
            published: Count::of(before + published, is_cut || before > COUNTED_MAX),
            unpublished: Count::of(unpublished, is_cut),
        })
    }
}

impl Count {
    fn of(events: i64, more: bool) -> Self {
        Self {
            events: events.min(COUNTED_MAX),
            more: more || events > COUNTED_MAX,
        }
    }
}

// === impl Display ===

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.events, self.more) {
            (0, true) => f.write_str("events"),
            (1, false) => f.write_str("1 event"),
            (events, false) => write!(f, "{events} events"),
            (events, true) => write!(f, "more than {events} events"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_tells_where_a_timeline_was_left() {
        let history = "1\t0/5000140\tno recovery target specified\n\n2\t1/A0\tbefore 2026\n";
        assert_eq!(left_at(history, 1), Some(Lsn(0x0500_0140)));
        assert_eq!(left_at(history, 2), Some(Lsn(0x1_0000_00A0)));
        assert_eq!(left_at(history, 3), None);
    }

    fn refused(original: Option<&str>, system: &str) -> String {
        let database =
            crate::postgres::DatabaseSettings::parse("postgres://a@localhost/b").expect("a URL");
        let options = RelayOptions::new(database, crate::kafka::Settings::default());
        let here = Identity {
            system: "1".into(),
            database: 2,
            timeline: 1,
        };
        let server = Server {
            version: 170_000,
            logical: true,
            wal_level: "logical".into(),
            identity: here,
            insert: Lsn(1),
        };
        let theirs = Identity {
            system: system.into(),
            database: 7,
            timeline: 1,
        };
        let counts = Counts {
            published: Count::of(3, false),
            unpublished: Count::of(COUNTED_MAX + 1, false),
        };
        other_database(&options, &server, &theirs, original, &counts).full()
    }

    /// A copy beside its original is distinguished from an upgrade, and the first remedy loses
    /// nothing.
    #[test]
    fn another_database_is_refused_with_its_cause_and_the_remedy_that_loses_nothing_first() {
        let copy = refused(Some("shop"), "1");
        assert!(
            copy.contains("copy of database `shop`") && !copy.contains("adopt"),
            "{copy}"
        );
        assert!(
            copy.contains("leaves out more than 10000 events")
                && copy.contains("3 events of it again"),
            "{copy}"
        );
        let upgraded = refused(None, "9");
        assert!(
            upgraded.contains("pg_upgrade") && upgraded.find("adopt") < upgraded.find("skip --all"),
            "{upgraded}"
        );
        assert!(refused(None, "1").contains("was dropped"));
    }
}
